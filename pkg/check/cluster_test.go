package check

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"os"
	"testing"
	"time"

	admissionregistration "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/apimachinery/pkg/version"
	"sigs.k8s.io/yaml"

	"github.com/meshvirt/meshvirt/pkg/inventory"
	"github.com/meshvirt/meshvirt/pkg/mutate"
	"github.com/meshvirt/meshvirt/pkg/record"
	"github.com/meshvirt/meshvirt/pkg/templates"
)

const (
	chart = "../../charts/testdata/built-in/want.yaml"
	vm    = "../../test/corpus/pods/v1.9.0/masquerade-istio-ports/"
	here  = "mesh" // the namespace of the recorded virtual machine
)

var now = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// world is a cluster that tests break.
type world struct{ *inventory.Cluster }

// well is a cluster with nothing wrong in it: the chart as it is rendered, and a recorded virtual machine whose pod
// was adapted.
func well(t *testing.T) world {
	t.Helper()
	c := world{&inventory.Cluster{Now: now, Server: &version.Info{Major: "1", Minor: "37", GitVersion: "v1.37.1"}}}
	c.addFile(t, chart)
	ours := &c.Configurations[0].Webhooks[0]
	ours.ClientConfig.CABundle = authority(t, now.AddDate(-1, 0, 0), now.AddDate(1, 0, 0))
	c.Configurations = append(c.Configurations, admissionregistration.MutatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: "istio-sidecar-injector"},
		Webhooks: []admissionregistration.MutatingWebhook{{
			Name:              "namespace.sidecar-injector.istio.io",
			NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"istio-injection": "enabled"}},
		}},
	})
	slice := discovery.EndpointSlice{ObjectMeta: metav1.ObjectMeta{
		Namespace: ours.ClientConfig.Service.Namespace, Labels: map[string]string{discovery.LabelServiceName: ours.ClientConfig.Service.Name},
	}}
	for _, name := range []string{"a", "b"} {
		slice.Endpoints = append(slice.Endpoints, discovery.Endpoint{TargetRef: &corev1.ObjectReference{Name: name}})
	}
	c.EndpointSlices = []discovery.EndpointSlice{slice}
	c.Namespaces = []corev1.Namespace{{ObjectMeta: metav1.ObjectMeta{Name: here, Labels: map[string]string{"istio-injection": "enabled"}}}}
	c.addFile(t, vm+"vmi.yaml")
	c.Machines = []inventory.Machine{{
		Object:      inventory.Object{Kind: "VirtualMachine", Namespace: here, Name: c.Instances[0].Name},
		Annotations: c.Instances[0].Annotations, Own: map[string]string{}, VMI: c.Instances[0].VMI,
	}}
	c.Instances[0].Owner = c.Machines[0].Name
	c.addFile(t, vm+"injected-1.31.0-rc.0-native.yaml")
	c.Pods[0].Name = "virt-launcher-vm-web-abcde"
	c.Pods[0].Status.Phase = corev1.PodRunning
	c.adapt(t)
	return c
}

func (c world) addFile(t *testing.T, file string) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for documents := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(b))); ; {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			return
		}
		if err == nil {
			document, err = yaml.YAMLToJSON(document)
		}
		if err != nil {
			t.Fatal(err)
		}
		if string(document) == "null" {
			continue
		}
		if err := c.Add(document); err != nil {
			t.Fatal(err)
		}
	}
}

// adapt gives the pod as the webhook makes it, with its containers as they should be.
func (c world) adapt(t *testing.T) {
	t.Helper()
	before, _, err := record.Undo(&c.Pods[0])
	if err != nil {
		t.Fatal(err)
	}
	pod, report, errs := mutate.Apply(before, mutate.Facts{VMI: c.Instances[0].VMI}, mutate.Config{Image: templates.Image{Name: templates.DefaultImage}})
	if len(errs) > 0 || pod.Annotations["meshvirt.io/status"] == "" {
		t.Fatalf("the pod was not adapted: %v\n%s", errs, report)
	}
	c.Pods[0] = *pod
	c.Pods[0].Status.InitContainerStatuses = nil
	for _, init := range pod.Spec.InitContainers {
		status := corev1.ContainerStatus{Name: init.Name, Ready: true, State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{}}}
		if init.RestartPolicy != nil {
			status.State = corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(now.Add(-time.Hour))}}
		}
		c.Pods[0].Status.InitContainerStatuses = append(c.Pods[0].Status.InitContainerStatuses, status)
	}
}

// relayed gives the virtual machine a relay.
func (c world) relayed(t *testing.T) {
	t.Helper()
	c.annotate("meshvirt.io/mode", "nat-proxy")
	c.adapt(t)
}

// annotate sets what the user of the virtual machine sets in its template.
func (c world) annotate(key, value string) {
	if len(c.Instances) > 0 {
		c.Instances[0].VMI.Annotations = c.Machines[0].Annotations
	}
	c.Machines[0].Annotations[key] = value // the map is the VMI's too
}

// status is that of our container in the pod.
func (c world) status(t *testing.T, name string) *corev1.ContainerStatus {
	t.Helper()
	for i := range c.Pods[0].Status.InitContainerStatuses {
		if s := &c.Pods[0].Status.InitContainerStatuses[i]; s.Name == name {
			return s
		}
	}
	t.Fatalf("the pod has no %s", name)
	return nil
}

func authority(t *testing.T, from, to time.Time) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: from, NotAfter: to, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

package apiserver

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/templates"
	"github.com/meshvirt/meshvirt/tools"
)

// factsCluster is a cluster with the chart installed and the webhook running with its rights.
type factsCluster struct {
	*Cluster
	istio   *Injector
	webhook *replica
	// corpus are the VMs' releases: of KubeVirt, and of Istio with the way it was set up.
	corpus [2]string
}

// Those for the newest Kubernetes and for the oldest.
var (
	newestCorpus = [2]string{"v1.9.0", "1.31.0-rc.0-native"}
	oldestCorpus = [2]string{"v1.0.1", "1.22.8-classic"}
)

const factsNamespace = "vms"

func startFacts(t *testing.T, start func(dir string) (*Cluster, error), corpus [2]string) *factsCluster {
	t.Helper()
	if err := tools.Uses("certs", "test/corpus"); err != nil {
		t.Fatal(err)
	}
	c := startCluster(t, start)
	f := &factsCluster{Cluster: c, corpus: corpus}
	var err error
	if f.istio, err = c.StartInjector(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.namespace(t, factsNamespace, nil)
	if err := c.Namespace(t.Context(), WebhookNamespace, nil); err != nil {
		t.Fatal(err)
	}
	service := &frontEnd{}
	t.Cleanup(service.close)
	args := install(t, c, service)
	f.webhook = startReplica(t, c, serviceAccountConfig(t, c), args)
	service.use(f.webhook)
	f.webhook.awaitReady(t)
	if err := c.awaitReview(t.Context(), WebhookName, factsNamespace, vmWeb(t).Pod); err != nil {
		t.Fatal(err)
	}
	return f
}

// namespace makes a namespace that is injected.
func (f *factsCluster) namespace(t *testing.T, name string, labels map[string]string) {
	t.Helper()
	all := map[string]string{"istio-injection": "enabled"}
	for k, v := range labels {
		all[k] = v
	}
	if err := f.Namespace(t.Context(), name, all); err != nil {
		t.Fatal(err)
	}
}

// corpusVM reads a VM of the corpus: its VMI and what Istio made of its pod.
func (f *factsCluster) corpusVM(t *testing.T, name string) (*unstructured.Unstructured, *Recording) {
	t.Helper()
	root, err := tools.Root()
	if err != nil {
		t.Fatal(err)
	}
	read := func(file string, into any) {
		b, err := os.ReadFile(filepath.Join(root, "test/corpus/pods", f.corpus[0], name, file))
		if err == nil {
			err = yaml.Unmarshal(b, into)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	vmi := &unstructured.Unstructured{}
	pod, injected := &corev1.Pod{}, &corev1.Pod{}
	read("vmi.yaml", &vmi.Object)
	read("pod.yaml", pod)
	read("injected-"+f.corpus[1]+".yaml", injected)
	r, err := newRecording(pod, injected)
	if err != nil {
		t.Fatal(err)
	}
	return vmi, r
}

// vm makes the VMI of a VM of the corpus under a name of the test's, and gives the pod that
// virt-controller would create for it. A VMI that is not to be made is only named.
func (f *factsCluster) vm(t *testing.T, namespace, corpus, name string, made bool, edit func(vmi *unstructured.Unstructured)) *corev1.Pod {
	t.Helper()
	vmi, recording := f.corpusVM(t, corpus)
	f.istio.Use(namespace, recording)
	vmi.SetNamespace(namespace)
	vmi.SetName(name)
	vmi.SetFinalizers(nil)
	vmi.SetUID("916411a0-cfc8-42c7-9e06-000000000000")
	if edit != nil {
		edit(vmi)
	}
	if made {
		if err := f.Client.Create(t.Context(), vmi); err != nil {
			t.Fatal(err)
		}
	}
	pod := recording.Pod.DeepCopy()
	pod.GenerateName = "virt-launcher-" + name + "-"
	pod.OwnerReferences[0].Name, pod.OwnerReferences[0].UID = name, vmi.GetUID()
	return pod
}

// admit gives the admitted pod and the warnings to its creator.
func (f *factsCluster) admit(t *testing.T, namespace string, pod *corev1.Pod, options ...client.CreateOption) (*corev1.Pod, string) {
	t.Helper()
	f.Warnings()
	got, err := f.Admit(t.Context(), namespace, pod, options...)
	if err != nil {
		t.Fatal(err)
	}
	if !adapted(got) {
		t.Errorf("the pod is not adapted: init containers %v", names(got.Spec.InitContainers))
	}
	return got, strings.Join(f.Warnings(), "\n")
}

// planOf reads the plan that the injected container was given.
func planOf(t *testing.T, pod *corev1.Pod) plan.Plan {
	t.Helper()
	i := slices.IndexFunc(pod.Spec.InitContainers, func(c corev1.Container) bool { return c.Name == templates.RulesName })
	if i < 0 {
		t.Fatalf("no %s in %v", templates.RulesName, names(pod.Spec.InitContainers))
	}
	p, err := plan.Decode(pod.Spec.InitContainers[i].Env[0].Value)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// events gives those that `kubectl describe` shows of the pod's VMI, by reason.
func (f *factsCluster) events(t *testing.T, pod *corev1.Pod, namespace string) map[string][]corev1.Event {
	t.Helper()
	owner := pod.OwnerReferences[0]
	var list corev1.EventList
	fields := client.MatchingFields{"involvedObject.uid": string(owner.UID), "involvedObject.name": owner.Name, "involvedObject.kind": owner.Kind}
	if err := f.Client.List(t.Context(), &list, client.InNamespace(namespace), fields); err != nil {
		t.Fatal(err)
	}
	all := map[string][]corev1.Event{}
	for _, e := range list.Items {
		all[e.Reason] = append(all[e.Reason], e)
	}
	return all
}

// awaitEvents waits for the first event about the pod's VMI, and gives all about it.
func (f *factsCluster) awaitEvents(t *testing.T, pod *corev1.Pod, namespace string) map[string][]corev1.Event {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(poll) {
		if all := f.events(t, pod, namespace); len(all) > 0 {
			return all
		}
		if time.Now().After(deadline) {
			t.Fatalf("no event about %s after %s", pod.OwnerReferences[0].Name, patience)
		}
	}
}

// looked gives how often VMIs came from the source.
func (f *factsCluster) looked(t *testing.T, source string) int {
	t.Helper()
	text, err := get(t.Context(), "http://"+f.webhook.metrics+"/metrics")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(text) {
		if v, ok := strings.CutPrefix(line, fmt.Sprintf("meshvirt_facts_total{source=%q} ", source)); ok {
			n, err := strconv.Atoi(strings.TrimSpace(v))
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("no source %q in\n%s", source, text)
	return 0
}

// await calls check until it is true.
func (f *factsCluster) await(t *testing.T, what string, check func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !check(); time.Sleep(poll) {
		if time.Now().After(deadline) {
			t.Fatalf("not after %s: %s", patience, what)
		}
	}
}

// serveVMIs makes the API server serve VMIs.
func (f *factsCluster) serveVMIs(t *testing.T) {
	t.Helper()
	if err := f.Client.Create(t.Context(), CRD("VirtualMachineInstance", "vmi")); err != nil {
		t.Fatal(err)
	}
	f.awaitVMIs(t)
}

// awaitQuestions waits until the webhook asks for VMIs again, after it was told that there are none.
func (f *factsCluster) awaitQuestions(t *testing.T) {
	t.Helper()
	f.await(t, "the webhook asks for VMIs again", func() bool {
		_, warnings := f.admit(t, factsNamespace, f.vm(t, factsNamespace, custom, "early", false, nil), client.DryRunAll)
		return strings.Contains(warnings, "there is no vms/early")
	})
}

// awaitVMIs waits until the API server serves VMIs.
func (f *factsCluster) awaitVMIs(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	f.await(t, "VMIs are served", func() bool {
		// By path: a client that asks what there is would remember that there was none.
		return f.rest.Get().AbsPath("/apis/kubevirt.io/v1/virtualmachineinstances").Do(ctx).Error() == nil
	})
}

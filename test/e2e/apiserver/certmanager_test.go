package apiserver

import (
	"bytes"
	"crypto/x509"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"

	"github.com/meshvirt/meshvirt/tools"
)

// The chart's names, of Certificates and of their Secrets alike.
const (
	leafName = "meshvirt-certificate"
	caName   = "meshvirt-ca"
)

//	 create pods          new port every 250 ms
//	─────────────► API server ────► Service ──┬──► webhook 1 ◄── files, 1 s late ──┐
//	 0 fail, all adapted   ▲ caBundle         └──► webhook 2 ◄── files, 2 s late ──┤
//	                       └────────────────── cert-manager ──► Secret ────────────┘
//
// VMs start without a failure while cert-manager, its own controllers, renews whatever the chart has it make.
func TestCertManager(t *testing.T) {
	m := startCertManaged(t)
	m.load.few(t)
	m.renew(t, "certificate renewed", func(t *testing.T) { issueAgain(t, m.load.Cluster, leafName) })
	m.renew(t, "Secret deleted", func(t *testing.T) { m.remove(t, leafName) })
	m.renew(t, "CA deleted", func(t *testing.T) { m.remove(t, caName, leafName) })
	m.load.wantNoFailure(t)
}

// Before 1.19 cert-manager replaces the CA in caBundle, so that the CA of what is still served is trusted no longer. That
// the chart's CA keeps its key when it is renewed makes up for it.
func TestCertManagerThatReplacesTheCA(t *testing.T) {
	m := startCertManaged(t, "-feature-gates=CAInjectorMerging=false")
	// In the order of years: first the CA, some day later the certificate, which brings the CA with it.
	old := caOfSecret(t, m.load.Cluster, caName)
	now := old
	issueAgain(t, m.load.Cluster, caName)
	m.load.until(t, "the CA is another one", func() bool {
		now = caOfSecret(t, m.load.Cluster, caName)
		return !now.Equal(old)
	})
	if !bytes.Equal(old.RawSubjectPublicKeyInfo, now.RawSubjectPublicKeyInfo) {
		t.Error("the CA has another key, want the old one")
	}
	m.renew(t, "CA renewed", func(t *testing.T) { issueAgain(t, m.load.Cluster, leafName) })
	m.load.wantNoFailure(t)
	if bundle := stored(t, m.load.Cluster).ClientConfig.CABundle; bytes.Count(bytes.TrimSpace(bundle), []byte("BEGIN CERTIFICATE")) != 1 || !parsePEM(t, bundle).Equal(now) {
		t.Errorf("caBundle is\n%s\nwant the new CA alone", bundle)
	}
	// A CA with another key is what no admission survives then, until the files are there: the checks above can fail.
	m.renew(t, "CA deleted", func(t *testing.T) { m.remove(t, caName, leafName) })
	if f := m.load.failures; len(f) == 0 || !strings.Contains(f[0].Error(), "x509: certificate signed by unknown authority") {
		t.Errorf("failures %v, want some that say that the authority is unknown", f)
	}
}

// certManaged is a cluster with the chart and cert-manager, and two replicas of the webhook.
type certManaged struct {
	load     *loader
	replicas []*replica
}

func startCertManaged(t *testing.T, certManagerArgs ...string) *certManaged {
	t.Helper()
	c := startCluster(t, Start)
	startCertManager(t, c, certManagerArgs)
	istio, err := c.StartInjector(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	vm := vmWeb(t)
	const here = "vms"
	istio.Use(here, vm)
	if err := errors.Join(c.Namespace(t.Context(), here, Injecting), c.Namespace(t.Context(), WebhookNamespace, nil)); err != nil {
		t.Fatal(err)
	}
	service := &frontEnd{}
	t.Cleanup(service.close)
	args := install(t, c, service, "--set=certManager.enabled=true")
	kubeconfig := serviceAccountConfig(t, c)
	m := &certManaged{load: &loader{Cluster: c, service: service, namespace: here, pod: vm.Pod}}
	for i := range 2 {
		dir := mountSecret(t, c, leafName, time.Duration(i+1)*time.Second)
		m.replicas = append(m.replicas, startReplica(t, c, kubeconfig, append(args[:len(args):len(args)], "--cert-dir="+dir)))
	}
	for _, r := range m.replicas {
		r.awaitReady(t)
	}
	service.use(m.replicas...)
	for deadline := time.Now().Add(patience); len(stored(t, c).ClientConfig.CABundle) == 0; time.Sleep(poll) {
		if time.Now().After(deadline) {
			t.Fatalf("cert-manager has not written caBundle after %s", patience)
		}
	}
	if err := c.awaitReview(t.Context(), WebhookName, here, vm.Pod); err != nil {
		t.Fatal(err)
	}
	return m
}

// renew has the serving certificate made anew while pods are created, until all replicas serve another one that
// API servers trust.
func (m *certManaged) renew(t *testing.T, name string, how func(t *testing.T)) {
	t.Helper()
	var old []*x509.Certificate
	for _, r := range m.replicas {
		old = append(old, served(t, r.reviews))
	}
	how(t)
	m.load.until(t, name+": every replica serves another certificate", func() bool {
		trusted := x509.NewCertPool()
		trusted.AppendCertsFromPEM(stored(t, m.load.Cluster).ClientConfig.CABundle)
		for i, r := range m.replicas {
			now := served(t, r.reviews)
			_, err := now.Verify(x509.VerifyOptions{Roots: trusted, DNSName: serviceName + "." + WebhookNamespace + ".svc"})
			if now.Equal(old[i]) || err != nil {
				return false
			}
		}
		return true
	})
	m.load.few(t)
	t.Logf("%s: %d pods so far, %d failures", name, m.load.admitted, len(m.load.failures))
}

// remove deletes Secrets.
func (m *certManaged) remove(t *testing.T, secrets ...string) {
	t.Helper()
	for _, name := range secrets {
		if err := m.load.Client.Delete(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: WebhookNamespace, Name: name}}); err != nil {
			t.Fatal(err)
		}
	}
}

func certificateObject(name string) *unstructured.Unstructured {
	object := &unstructured.Unstructured{}
	object.SetAPIVersion("cert-manager.io/v1")
	object.SetKind("Certificate")
	object.SetNamespace(WebhookNamespace)
	object.SetName(name)
	return object
}

// issueAgain does what `cmctl renew` does, and what cert-manager does when the time has come.
func issueAgain(t *testing.T, c *Cluster, name string) {
	t.Helper()
	object := certificateObject(name)
	for deadline := time.Now().Add(patience); ; time.Sleep(poll) {
		if err := c.Client.Get(t.Context(), client.ObjectKeyFromObject(object), object); err != nil {
			t.Fatal(err)
		}
		conditions, _, err := unstructured.NestedSlice(object.Object, "status", "conditions")
		if err != nil {
			t.Fatal(err)
		}
		conditions = slices.DeleteFunc(conditions, func(c any) bool { return c.(map[string]any)["type"] == "Issuing" })
		conditions = append(conditions, map[string]any{
			"type": "Issuing", "status": "True", "reason": "ManuallyTriggered", "message": "by a test",
			"lastTransitionTime": time.Now().UTC().Format(time.RFC3339),
		})
		if err := unstructured.SetNestedSlice(object.Object, conditions, "status", "conditions"); err != nil {
			t.Fatal(err)
		}
		err = c.Client.Status().Update(t.Context(), object)
		if err == nil {
			return
		}
		if time.Now().After(deadline) { // else cert-manager was faster with a change of its own
			t.Fatal(err)
		}
	}
}

// startCertManager starts cert-manager's controllers, with its CRDs, until the test ends.
func startCertManager(t *testing.T, c *Cluster, args []string) {
	t.Helper()
	program, crds, err := tools.CertManager()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := envtest.InstallCRDs(c.env.Config, envtest.CRDInstallOptions{Paths: []string{crds}, ErrorIfPathMissing: true, MaxTime: patience}); err != nil {
		t.Fatal(err)
	}
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(kubeconfig, c.env.KubeConfig, 0o600); err != nil {
		t.Fatal(err)
	}
	process := exec.Command(program, args...)
	process.Env = append(os.Environ(), "KUBECONFIG="+kubeconfig)
	startProcess(t, "cert-manager", process, nil)
}

package node

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	admissionregistration "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvirt/meshvirt/tools"
)

// The subjects of the CAs, by which it is told who made a certificate.
const (
	builtInCA     = "meshvirt-webhook-ca"
	certManagerCA = "meshvirt-ca"
)

// certManager makes the cluster one that has cert-manager, with so many replicas of its cainjector.
func certManager(t *testing.T, c *Cluster, cainjectors int) {
	t.Helper()
	_, crds, err := tools.CertManager()
	do(t, err)
	root, err := tools.Root()
	do(t, err)
	kubectl(t, c, "apply", "--server-side", "-f", crds)
	kubectl(t, c, "wait", "--for=condition=Established", "-f", crds)
	kubectl(t, c, "apply", "-f", filepath.Join(root, "test/e2e/node/testdata/cert-manager.yaml"))
	scaleCAInjector(t, c, cainjectors)
	kubectl(t, c, "rollout", "status", "-n", "cert-manager", "deployment/cert-manager", "--timeout", patience.String())
}

// scaleCAInjector returns when so many run.
func scaleCAInjector(t *testing.T, c *Cluster, replicas int) {
	t.Helper()
	kubectl(t, c, "scale", "-n", "cert-manager", "deployment/cert-manager-cainjector", fmt.Sprintf("--replicas=%d", replicas))
	await1(t, "replicas of cainjector", func() bool {
		var list corev1.PodList
		do(t, c.Client.List(t.Context(), &list, client.InNamespace("cert-manager"), client.MatchingLabels{"app": "cainjector"}))
		return len(list.Items) == replicas
	})
	kubectl(t, c, "rollout", "status", "-n", "cert-manager", "deployment/cert-manager-cainjector", "--timeout", patience.String())
}

// noVirtualMachines removes those of earlier tests.
func noVirtualMachines(t *testing.T, c *Cluster) {
	t.Helper()
	kubectl(t, c, "delete", "pods,vmi", "-n", vms, "--all")
}

// allIsWell wants kubectl meshvirt check to find nothing, after a moment.
func allIsWell(t *testing.T, c *Cluster) {
	t.Helper()
	var said string
	defer func() { t.Log(said) }()
	await1(t, "kubectl meshvirt check -A --try finds that all is well", func() bool {
		said, _ = c.shell(t.Context(), "kubectl meshvirt check -A --try")
		return strings.HasPrefix(said, "All is well: MeshVirt")
	})
}

// caBundle gives what API servers trust the webhook by, as PEM.
func caBundle(t *testing.T, c *Cluster) []byte {
	t.Helper()
	configuration := &admissionregistration.MutatingWebhookConfiguration{}
	do(t, c.Client.Get(t.Context(), client.ObjectKey{Name: "meshvirt-webhook"}, configuration))
	return configuration.Webhooks[0].ClientConfig.CABundle
}

func setCABundle(t *testing.T, c *Cluster, bundle []byte) {
	t.Helper()
	kubectl(t, c, "patch", "mutatingwebhookconfiguration", "meshvirt-webhook", "--type=json",
		"--patch", fmt.Sprintf(`[{"op":"add","path":"/webhooks/0/clientConfig/caBundle","value":%q}]`, base64.StdEncoding.EncodeToString(bundle)))
}

// served gives the certificate that each pod of the webhook serves, by the pod's name, and whether API servers
// trust all of them.
func served(t *testing.T, c *Cluster) (_ map[string]*x509.Certificate, trusted bool) {
	t.Helper()
	var list corev1.PodList
	do(t, c.Client.List(t.Context(), &list, client.InNamespace(system)))
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(caBundle(t, c))
	all := map[string]*x509.Certificate{}
	trusted = true
	for _, pod := range list.Items {
		conn, err := tls.Dial("tcp", net.JoinHostPort(pod.Status.PodIP, "9443"), &tls.Config{InsecureSkipVerify: true})
		do(t, err)
		leaf := conn.ConnectionState().PeerCertificates[0]
		_ = conn.Close()
		_, err = leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: "meshvirt." + system + ".svc"})
		all[pod.Name], trusted = leaf, trusted && err == nil
	}
	return all, trusted
}

// made gives the certificate in cert-manager's Secret, if that is there.
func made(t *testing.T, c *Cluster) *x509.Certificate {
	t.Helper()
	secret := &corev1.Secret{}
	do(t, client.IgnoreNotFound(c.Client.Get(t.Context(), client.ObjectKey{Namespace: system, Name: "meshvirt-certificate"}, secret)))
	block, _ := pem.Decode(secret.Data[corev1.TLSCertKey])
	if block == nil {
		return nil
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	do(t, err)
	return leaf
}

// wantServed wants certificates of one CA, trusted.
func wantServed(t *testing.T, c *Cluster, ca string) {
	t.Helper()
	all, trusted := served(t, c)
	if !trusted || len(all) != 2 {
		t.Errorf("%d certificates are served, trusted %t, want 2 that are", len(all), trusted)
	}
	for pod, leaf := range all {
		if leaf.Issuer.CommonName != ca {
			t.Errorf("%s serves a certificate of %s, want one of %s", pod, leaf.Issuer, ca)
		}
	}
}

// connections gives the API server's to the webhook, by their local addresses.
func connections(t *testing.T, c *Cluster) []string {
	t.Helper()
	service := &corev1.Service{}
	do(t, c.Client.Get(t.Context(), client.ObjectKey{Namespace: system, Name: "meshvirt"}, service))
	out, err := command(t.Context(), "ss", "-Htn", "state", "established", "dst", service.Spec.ClusterIP)
	do(t, err)
	var all []string
	for line := range strings.Lines(out) {
		all = append(all, strings.Fields(line)[2])
	}
	return all
}

// connectAnew makes the API server open new connections to the webhook. It keeps those that it has, and with them
// certificates that are served no more, as long as it is to trust the same: so it is told of one more.
func connectAnew(t *testing.T, c *Cluster) {
	t.Helper()
	before := connections(t, c)
	another, _, _, err := c.Issue("nobody.example")
	do(t, err)
	setCABundle(t, c, slices.Concat(caBundle(t, c), another))
	await1(t, "the API server has a new connection to the webhook", func() bool {
		return slices.ContainsFunc(connections(t, c), func(local string) bool { return !slices.Contains(before, local) })
	})
}

// renew has cert-manager make the serving certificate anew while pods are created, until kubelet has brought it to the
// webhook's pods, which stay, and the API server has met it.
func renew(t *testing.T, c *Cluster, name string, how func()) {
	t.Helper()
	before, pods := made(t, c), webhookPods(t, c)
	underLoad(t, c, "vm-"+name, func() {
		start := time.Now()
		how()
		await1(t, "every pod of the webhook serves another certificate, which API servers trust", func() bool {
			now := made(t, c)
			all, trusted := served(t, c)
			for _, leaf := range all {
				trusted = trusted && leaf.Equal(now)
			}
			return trusted && len(all) == len(pods) && !now.Equal(before)
		})
		t.Logf("%s: served by all after %s", name, time.Since(start).Round(time.Second/10))
		connectAnew(t, c)
	})
	if now := webhookPods(t, c); !slices.Equal(now, pods) {
		t.Errorf("pods of the webhook were %v and are %v, want no change", pods, now)
	}
}

// A user's way with cert-manager, whose controllers run in the cluster: as long as nobody writes caBundle, no
// virtual machine starts and check says so. Then they do, also while cert-manager renews what there is.
func TestCertManager(t *testing.T) {
	c := node(t)
	uninstall(t, c)
	kubeVirt(t, c)
	noVirtualMachines(t, c)
	certManager(t, c, 0)
	do(t, c.Namespace(t.Context(), system, restricted))
	install(t, c, "--set=certManager.enabled=true")

	said, err := c.shell(t.Context(), "kubectl meshvirt check -A --try")
	for _, want := range []string{"[CABundleMissing]", "[Unanswered]", "caBundle is not of who signed"} {
		if err == nil || !strings.Contains(said, want) {
			t.Errorf("without cainjector kubectl meshvirt check says (%v)\n%s\nwant %q", err, said, want)
		}
	}
	count, err := load(t, c, "vm-untrusted", func() {})
	if count.created == 0 || count.refused < count.created || !strings.Contains(err.Error(), "failed to verify certificate") {
		t.Errorf("without cainjector %d of %d pods are refused, with %v, want all: the certificate cannot be verified", count.refused, count.created, err)
	}

	scaleCAInjector(t, c, 1)
	allIsWell(t, c)
	wantServed(t, c, certManagerCA)
	if pod := running(t, c, launch(t, c, "vm-certified", nil)); !adapted(pod) {
		t.Errorf("the pod is not adapted: %+v", pod)
	}

	renew(t, c, "renewed", func() { // as cmctl renew does
		kubectl(t, c, "patch", "certificate", "-n", system, "meshvirt-certificate", "--subresource=status", "--type=json", "--patch", `[{"op":"add","path":"/status/conditions/-","value":
			{"type":"Issuing","status":"True","reason":"ManuallyTriggered","message":"by a test","lastTransitionTime":"`+time.Now().UTC().Format(time.RFC3339)+`"}}]`)
	})
	renew(t, c, "new-ca", func() { kubectl(t, c, "delete", "secret", "-n", system, "meshvirt-ca", "meshvirt-certificate") })
	allIsWell(t, c)
}

// From one kind of certificate to the other and back, while virtual machines start. Neither time is there anything yet of
// the kind that comes: no Secret, and no trust in its CA.
func TestSwitchCertificate(t *testing.T) {
	c := node(t)
	if values, err := c.Helm(t.Context(), "get", "values", "meshvirt", "-n", system); err != nil || !strings.Contains(values, "certManager:\n  enabled: true\n") {
		uninstall(t, c)
		kubeVirt(t, c)
		certManager(t, c, 1)
		do(t, c.Namespace(t.Context(), system, restricted))
		install(t, c, "--set=certManager.enabled=true")
	}
	noVirtualMachines(t, c)
	allIsWell(t, c)
	wantServed(t, c, certManagerCA)

	underLoad(t, c, "vm-to-built-in", func() { upgrade(t, c, "certManager.enabled=false") })
	wantServed(t, c, builtInCA)
	allIsWell(t, c)

	kubectl(t, c, "delete", "secret", "-n", system, "meshvirt-ca", "meshvirt-certificate")
	setCABundle(t, c, nil)
	await1(t, "the webhook has put back its CA", func() bool { return len(caBundle(t, c)) > 0 })
	if n := strings.Count(string(caBundle(t, c)), "BEGIN CERTIFICATE"); n != 1 {
		t.Errorf("caBundle has %d certificates, want the webhook's CA alone", n)
	}
	allIsWell(t, c)
	pod := launcher(t, c, "vm-built-in", nil)
	await1(t, "a pod is created", func() bool { // the API server hears of it in a moment
		_, err := c.Admit(t.Context(), vms, pod, client.DryRunAll)
		return err == nil
	})

	underLoad(t, c, "vm-to-cert-manager", func() { upgrade(t, c, "certManager.enabled=true") })
	wantServed(t, c, certManagerCA)
	kubectl(t, c, "delete", "secret", "-n", system, "meshvirt-webhook-ca")
	allIsWell(t, c)
}

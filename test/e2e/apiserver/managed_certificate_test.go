package apiserver

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	admissionregistration "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	authentication "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvirt/meshvirt/tools"
)

const (
	// The chart's names for a release called meshvirt.
	serviceName       = "meshvirt"
	caSecretName      = "meshvirt-webhook-ca"
	configurationName = "meshvirt-webhook"
)

//	 create pods          new port every 250 ms       delete Secret
//	─────────────► API server ────► Service ──┬──► webhook 1 ──┐ caBundle, Secret: with
//	 0 fail, all adapted   ▲ TLS, by the name │    webhook 2 ──┤ the chart's RBAC only
//	                       └──────────────────┴────────────────┘
//
// VMs start without a failure while the CA of the chart's default, a certificate that the webhook makes
// itself, is thrown away. The name of the configuration is fixed, so this cluster is the test's own.
func TestManagedCertificate(t *testing.T) {
	ctx := t.Context()
	if err := tools.Uses("certs"); err != nil {
		t.Fatal(err)
	}
	c := startCluster(t, Start)
	istio, err := c.StartInjector(ctx)
	if err != nil {
		t.Fatal(err)
	}
	vm := vmWeb(t)
	const here = "vms"
	istio.Use(here, vm)
	if err := c.Namespace(ctx, here, Injecting); err != nil {
		t.Fatal(err)
	}
	if err := c.Namespace(ctx, WebhookNamespace, nil); err != nil {
		t.Fatal(err)
	}
	service := &frontEnd{}
	t.Cleanup(service.close)
	args := install(t, c, service)
	kubeconfig := serviceAccountConfig(t, c)
	var replicas []*replica
	for range 2 {
		r := startReplica(t, c, kubeconfig, args)
		replicas = append(replicas, r)
	}
	for _, r := range replicas {
		r.awaitReady(t)
	}
	service.use(replicas...)
	old := caOfSecret(t, c, caSecretName)
	if err := c.awaitReview(ctx, WebhookName, here, vm.Pod); err != nil {
		t.Fatal(err)
	}

	load := &loader{Cluster: c, service: service, namespace: here, pod: vm.Pod}
	load.few(t)
	if err := c.Client.Delete(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: WebhookNamespace, Name: caSecretName}}); err != nil {
		t.Fatal(err)
	}
	load.until(t, "every replica serves a certificate of the new CA", func() bool {
		ca := caOfSecret(t, c, caSecretName)
		return !ca.Equal(old) && !slices.ContainsFunc(replicas, func(r *replica) bool { return served(t, r.reviews).CheckSignatureFrom(ca) != nil })
	})
	load.few(t)
	load.wantNoFailure(t)

	// An upgrade leaves alone what the webhook wrote.
	for _, r := range replicas {
		r.stop() // or it would repair what is looked for
	}
	before := stored(t, c)
	helm(t, c, "upgrade", "--set=webhook.timeoutSeconds=7")
	after := stored(t, c)
	if *after.TimeoutSeconds != 7 {
		t.Errorf("helm upgrade left timeoutSeconds at %d, want 7", *after.TimeoutSeconds)
	}
	if len(before.ClientConfig.CABundle) == 0 || !bytes.Equal(before.ClientConfig.CABundle, after.ClientConfig.CABundle) {
		t.Errorf("helm upgrade changed caBundle from\n%s\nto\n%s", before.ClientConfig.CABundle, after.ClientConfig.CABundle)
	}
}

// install installs the chart by helm, with values (--set=...) beside the default ones, and gives the arguments of the webhook's container.
// The Service leads to this machine then.
func install(t *testing.T, c *Cluster, service *frontEnd, values ...string) (args []string) {
	t.Helper()
	helm(t, c, "install", values...)
	key := client.ObjectKey{Namespace: WebhookNamespace, Name: serviceName}
	deployment := &appsv1.Deployment{}
	if err := c.Client.Get(t.Context(), key, deployment); err != nil {
		t.Fatal(err)
	}
	object := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name}}
	// API servers follow such a Service when they call a webhook, and check the certificate for the Service's name.
	patch := `{"spec":{"type":"ExternalName","externalName":"localhost","clusterIP":null,"clusterIPs":null}}`
	if err := c.Client.Patch(t.Context(), object, client.RawPatch(types.MergePatchType, []byte(patch))); err != nil {
		t.Fatal(err)
	}
	repoint(t, c, service.listen(t))
	return deployment.Spec.Template.Spec.Containers[0].Args
}

// helm runs the subcommand for the chart as an administrator.
func helm(t *testing.T, c *Cluster, subcommand string, args ...string) {
	t.Helper()
	root, err := tools.Root()
	if err != nil {
		t.Fatal(err)
	}
	program, err := tools.Helm()
	if err != nil {
		t.Fatal(err)
	}
	home := t.TempDir()
	kubeconfig := filepath.Join(home, "kubeconfig")
	if err := os.WriteFile(kubeconfig, c.env.KubeConfig, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, append([]string{
		subcommand, serviceName, filepath.Join(root, "charts", "meshvirt"), "--namespace=" + WebhookNamespace, "--kubeconfig=" + kubeconfig,
	}, args...)...)
	cmd.Env = append(os.Environ(), "HELM_CACHE_HOME="+home, "HELM_CONFIG_HOME="+home, "HELM_DATA_HOME="+home)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("helm %s: %v\n%s", subcommand, err, out)
	}
}

// stored gives the webhook as the API server has it.
func stored(t *testing.T, c *Cluster) admissionregistration.MutatingWebhook {
	t.Helper()
	configuration := &admissionregistration.MutatingWebhookConfiguration{}
	if err := c.Client.Get(t.Context(), client.ObjectKey{Name: configurationName}, configuration); err != nil {
		t.Fatal(err)
	}
	return configuration.Webhooks[0]
}

// repoint makes the API server call the Service's port.
func repoint(t *testing.T, c *Cluster, port int) {
	t.Helper()
	patch := fmt.Sprintf(`[{"op":"replace","path":"/webhooks/0/clientConfig/service/port","value":%d}]`, port)
	object := &admissionregistration.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: configurationName}}
	if err := c.Client.Patch(t.Context(), object, client.RawPatch(types.JSONPatchType, []byte(patch))); err != nil {
		t.Fatal(err)
	}
}

// serviceAccountConfig writes a kubeconfig of the chart's ServiceAccount, with a token as its pods get it.
func serviceAccountConfig(t *testing.T, c *Cluster) (file string) {
	t.Helper()
	request := &authentication.TokenRequest{}
	if err := c.Client.SubResource("token").Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: WebhookNamespace, Name: serviceName}}, request); err != nil {
		t.Fatal(err)
	}
	config := clientcmdapi.NewConfig()
	config.Clusters["test"] = &clientcmdapi.Cluster{Server: c.env.Config.Host, CertificateAuthorityData: c.env.Config.CAData}
	config.AuthInfos["test"] = &clientcmdapi.AuthInfo{Token: request.Status.Token}
	config.Contexts["test"] = &clientcmdapi.Context{Cluster: "test", AuthInfo: "test"}
	config.CurrentContext = "test"
	file = filepath.Join(t.TempDir(), "kubeconfig")
	if err := clientcmd.WriteToFile(*config, file); err != nil {
		t.Fatal(err)
	}
	return file
}

// replica is a process of cmd/webhook.
type replica struct {
	reviews, health, metrics string // addresses
	process                  *os.Process
	stop                     func()
}

func (r *replica) signal(t *testing.T, s os.Signal) {
	t.Helper()
	if err := r.process.Signal(s); err != nil {
		t.Error(err)
	}
}

// startReplica starts cmd/webhook; it is stopped when the test ends, if not before.
func startReplica(t *testing.T, c *Cluster, kubeconfig string, args []string) *replica {
	t.Helper()
	program, err := c.program()
	if err != nil {
		t.Fatal(err)
	}
	r := &replica{}
	if r.reviews, r.health, r.metrics, err = freeAddresses(); err != nil {
		t.Fatal(err)
	}
	process := exec.Command(program, slices.Concat(args, []string{"--listen=" + r.reviews, "--health-listen=" + r.health, "--metrics-listen=" + r.metrics})...)
	process.Env = append(os.Environ(), "KUBECONFIG="+kubeconfig)
	requests := func(line string) bool { return strings.Contains(line, `"msg":"admission"`) }
	r.process, r.stop = startProcess(t, "the webhook at "+r.reviews, process, requests)
	return r
}

// startProcess starts one that ends with the test, if not by stop before. If the test fails, its log is shown without
// the lines that are dull.
func startProcess(t *testing.T, name string, process *exec.Cmd, dull func(line string) bool) (_ *os.Process, stop func()) {
	t.Helper()
	var log bytes.Buffer
	process.Stdout, process.Stderr = &log, &log
	if err := process.Start(); err != nil {
		t.Fatal(err)
	}
	release, err := guard(process.Process.Pid)
	stop = sync.OnceFunc(func() {
		_ = process.Process.Kill()
		_ = process.Wait()
		if err == nil {
			release()
		}
	})
	t.Cleanup(func() {
		stop()
		if t.Failed() {
			lines := strings.Split(log.String(), "\n")
			if dull != nil {
				lines = slices.DeleteFunc(lines, dull)
			}
			t.Logf("log of %s\n%s", name, strings.Join(lines, "\n"))
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return process.Process, stop
}

func (r *replica) awaitReady(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(poll) {
		_, err := get(t.Context(), "http://"+r.health+"/readyz")
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the webhook is not ready after %s: %v", patience, err)
		}
	}
}

// caOfSecret reads the CA once it is there.
func caOfSecret(t *testing.T, c *Cluster, name string) *x509.Certificate {
	t.Helper()
	secret := &corev1.Secret{}
	for deadline := time.Now().Add(patience); ; time.Sleep(poll) {
		err := c.Client.Get(t.Context(), client.ObjectKey{Namespace: WebhookNamespace, Name: name}, secret)
		if err == nil {
			break
		}
		if client.IgnoreNotFound(err) != nil || time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	return parsePEM(t, secret.Data[corev1.TLSCertKey])
}

// parsePEM gives the first certificate of the text.
func parsePEM(t *testing.T, text []byte) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode(text)
	if block == nil {
		t.Fatalf("no certificate in %q", text)
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// served gives the certificate that is served at the address, trusted or not.
func served(t *testing.T, address string) *x509.Certificate {
	t.Helper()
	conn, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	return conn.ConnectionState().PeerCertificates[0]
}

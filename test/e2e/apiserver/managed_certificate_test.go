package apiserver

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	authentication "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	yamlstream "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

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
	if err := uses(); err != nil {
		t.Fatal(err)
	}
	if err := tools.Uses("certs"); err != nil {
		t.Fatal(err)
	}
	c, err := Start(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	})
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
	var health []string
	for range 2 {
		reviews, readiness := startReplica(t, c, kubeconfig, args)
		service.backends, health = append(service.backends, reviews), append(health, readiness)
	}
	for _, address := range health {
		awaitReady(t, address)
	}
	old := caOfSecret(t, c)
	if err := c.awaitReview(ctx, WebhookName, here, vm.Pod); err != nil {
		t.Fatal(err)
	}

	var admitted, failed, unadapted int
	create := func() {
		pod, err := c.Admit(ctx, here, vm.Pod)
		if admitted++; err != nil {
			failed++
			t.Error(err)
		} else if !adapted(pod) {
			unadapted++
		}
	}
	// Each new port is a new connection, and so a handshake with what is served and trusted by then.
	load := func(until func() bool) {
		for deadline := time.Now().Add(patience); !until(); {
			if time.Now().After(deadline) {
				t.Fatalf("the certificates are of the old CA after %s", patience)
			}
			repoint(t, c, service.listen(t))
			for range 5 {
				create()
				time.Sleep(50 * time.Millisecond)
			}
		}
	}
	rounds := 0
	few := func() bool { rounds++; return rounds > 4 }
	load(few)
	if err := c.Client.Delete(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: WebhookNamespace, Name: caSecretName}}); err != nil {
		t.Fatal(err)
	}
	load(func() bool {
		ca := caOfSecret(t, c)
		return !ca.Equal(old) && !slices.ContainsFunc(service.backends, func(address string) bool { return served(t, address).CheckSignatureFrom(ca) != nil })
	})
	rounds = 0
	load(few)
	if failed+unadapted > 0 {
		t.Errorf("of %d pods %d were refused and %d not adapted, want none", admitted, failed, unadapted)
	}
	if n := service.connections.Load(); n < 10 {
		t.Errorf("the API server made %d connections to the webhook, want at least 10", n)
	}
	t.Logf("%d pods, %d connections", admitted, service.connections.Load())
}

// install creates what the chart renders with its default values, but for pods, and gives the arguments of the
// webhook's container. The Service leads to this machine.
func install(t *testing.T, c *Cluster, service *frontEnd) (args []string) {
	t.Helper()
	root, err := tools.Root()
	if err != nil {
		t.Fatal(err)
	}
	helm, err := tools.Helm()
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(helm, "template", serviceName, filepath.Join(root, "charts", "meshvirt"), "--namespace="+WebhookNamespace, "--kube-version=1.37.1").Output()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		t.Fatalf("%v\n%s", err, exit.Stderr)
	} else if err != nil {
		t.Fatal(err)
	}
	for documents := yamlstream.NewYAMLReader(bufio.NewReader(bytes.NewReader(out))); ; {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		object := &unstructured.Unstructured{}
		if err := errors.Join(err, yaml.Unmarshal(document, object)); err != nil {
			t.Fatal(err)
		}
		switch object.GetKind() {
		case "PodDisruptionBudget":
			continue
		case "Deployment":
			containers, _, err := unstructured.NestedSlice(object.Object, "spec", "template", "spec", "containers")
			if err != nil || len(containers) != 1 {
				t.Fatalf("%d containers (%v), want 1", len(containers), err)
			}
			if args, _, err = unstructured.NestedStringSlice(containers[0].(map[string]any), "args"); err != nil {
				t.Fatal(err)
			}
			continue
		case "Service":
			object.Object["spec"] = map[string]any{"type": string(corev1.ServiceTypeExternalName), "externalName": "localhost"}
		}
		if err := c.Client.Create(t.Context(), object); err != nil {
			t.Fatalf("%s: %v", object.GetKind(), err)
		}
	}
	if len(args) == 0 {
		t.Fatal("the chart renders no arguments")
	}
	repoint(t, c, service.listen(t))
	return args
}

// repoint makes the API server call the Service's port.
func repoint(t *testing.T, c *Cluster, port int) {
	t.Helper()
	patch := fmt.Sprintf(`[{"op":"replace","path":"/webhooks/0/clientConfig/service/port","value":%d}]`, port)
	object := &unstructured.Unstructured{}
	object.SetAPIVersion("admissionregistration.k8s.io/v1")
	object.SetKind("MutatingWebhookConfiguration")
	object.SetName(configurationName)
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
	config.Clusters["test"] = &clientcmdapi.Cluster{Server: "https://" + c.env.ControlPlane.GetAPIServer().SecureServing.ListenAddr.HostPort(), CertificateAuthorityData: c.env.Config.CAData}
	config.AuthInfos["test"] = &clientcmdapi.AuthInfo{Token: request.Status.Token}
	config.Contexts["test"] = &clientcmdapi.Context{Cluster: "test", AuthInfo: "test"}
	config.CurrentContext = "test"
	file = filepath.Join(t.TempDir(), "kubeconfig")
	if err := clientcmd.WriteToFile(*config, file); err != nil {
		t.Fatal(err)
	}
	return file
}

// startReplica starts cmd/webhook until the test ends and gives its addresses.
func startReplica(t *testing.T, c *Cluster, kubeconfig string, args []string) (reviews, health string) {
	t.Helper()
	program, err := c.program()
	if err != nil {
		t.Fatal(err)
	}
	reviews, health, _, err = freeAddresses()
	if err != nil {
		t.Fatal(err)
	}
	process := exec.Command(program, slices.Concat(args, []string{"--listen=" + reviews, "--health-listen=" + health, "--metrics-listen="})...)
	process.Env = append(os.Environ(), "KUBECONFIG="+kubeconfig)
	var log bytes.Buffer
	process.Stdout, process.Stderr = &log, &log
	if err := process.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = process.Process.Kill()
		_ = process.Wait()
		if t.Failed() {
			t.Logf("log of the webhook at %s\n%s", reviews, &log)
		}
	})
	release, err := guard(process.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(release)
	return reviews, health
}

func awaitReady(t *testing.T, health string) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(poll) {
		_, err := get(t.Context(), "http://"+health+"/readyz")
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the webhook is not ready after %s: %v", patience, err)
		}
	}
}

// caOfSecret reads the CA once it is there.
func caOfSecret(t *testing.T, c *Cluster) *x509.Certificate {
	t.Helper()
	secret := &corev1.Secret{}
	for deadline := time.Now().Add(patience); ; time.Sleep(poll) {
		err := c.Client.Get(t.Context(), client.ObjectKey{Namespace: WebhookNamespace, Name: caSecretName}, secret)
		if err == nil {
			break
		}
		if client.IgnoreNotFound(err) != nil || time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	block, _ := pem.Decode(secret.Data[corev1.TLSCertKey])
	if block == nil {
		t.Fatalf("no certificate in %q", secret.Data[corev1.TLSCertKey])
	}
	ca, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return ca
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

// frontEnd is what kube-proxy is to a Service: each connection goes to the next backend.
type frontEnd struct {
	backends    []string // addresses; complete before the first connection
	connections atomic.Int32

	mu   sync.Mutex
	open []io.Closer
}

// listen adds a port that leads to the backends.
func (f *frontEnd) listen(t *testing.T) (port int) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f.keep(l)
	go func() {
		for {
			from, err := l.Accept()
			if err != nil {
				return
			}
			f.keep(from)
			go f.connect(from)
		}
	}()
	return l.Addr().(*net.TCPAddr).Port
}

func (f *frontEnd) connect(from net.Conn) {
	defer from.Close()
	to, err := net.Dial("tcp", f.backends[int(f.connections.Add(1))%len(f.backends)])
	if err != nil {
		return
	}
	defer to.Close()
	go func() {
		defer to.Close()
		_, _ = io.Copy(to, from)
	}()
	_, _ = io.Copy(from, to)
}

func (f *frontEnd) keep(c io.Closer) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.open = append(f.open, c)
}

func (f *frontEnd) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.open {
		_ = c.Close()
	}
}

package certs

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"flag"
	"fmt"
	"log/slog"
	"math/big"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-logr/logr"
	admissionregistration "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/klog/v2"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/meshvirt/meshvirt/tools"
)

// propagation is long enough for the client of the rotation tests, which looks at the bundle every second,
// on a machine that compiles at the same time.
const propagation = 4 * time.Second

// patience bounds every wait for a condition.
const patience = 90 * time.Second

// One control plane serves all tests; each has a namespace and a configuration of its own.
var (
	env   *envtest.Environment
	admin kubernetes.Interface
	count atomic.Int32
)

func TestMain(m *testing.M) {
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	flag.Parse()
	if err := flag.Set("test.parallel", "6"); err != nil { // they wait most of the time
		return 0, err
	}
	ctrllog.SetLogger(logr.Discard())
	klog.SetLogger(logr.Discard()) // client-go tells again what Ready must say
	programs, err := tools.ControlPlane()
	if err != nil {
		return 0, err
	}
	env = &envtest.Environment{
		BinaryAssetsDirectory:    programs,
		UseExistingCluster:       new(bool), // whatever the environment says
		ControlPlaneStartTimeout: patience,
		ControlPlaneStopTimeout:  patience,
	}
	config, err := env.Start()
	if err != nil {
		return 0, fmt.Errorf("start control plane: %w", err)
	}
	defer func() {
		if e := env.Stop(); err == nil {
			err = e
		}
	}()
	config.QPS = -1 // no limit of the client's own
	if admin, err = kubernetes.NewForConfig(config); err != nil {
		return 0, err
	}
	return m.Run(), nil
}

// place makes a namespace and gives a certificate for it whose configuration is not there yet.
func place(t *testing.T) Managed {
	t.Helper()
	name := fmt.Sprintf("certs-%d", count.Add(1))
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if _, err := admin.CoreV1().Namespaces().Create(t.Context(), namespace, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	return Managed{
		RESTConfig: env.Config, Namespace: name, SecretName: "ca", Configuration: name,
		DNSNames: []string{"webhook." + name + ".svc"}, Propagation: propagation,
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
}

// configure makes the configuration: of two webhooks, with a selector that keeps other tests apart.
func configure(t *testing.T, m *Managed) {
	t.Helper()
	c := &admissionregistration.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: m.Configuration}}
	none := admissionregistration.SideEffectClassNone
	for _, name := range []string{"one.example.com", "two.example.com"} {
		c.Webhooks = append(c.Webhooks, admissionregistration.MutatingWebhook{
			Name:                    name,
			ClientConfig:            admissionregistration.WebhookClientConfig{Service: &admissionregistration.ServiceReference{Namespace: m.Namespace, Name: "webhook"}},
			SideEffects:             &none,
			AdmissionReviewVersions: []string{"v1"},
		})
	}
	if _, err := admin.AdmissionregistrationV1().MutatingWebhookConfigurations().Create(t.Context(), c, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// start runs a replica until the test ends.
func start(t *testing.T, m *Managed) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Start(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("it ended with %v", err)
			}
		case <-time.After(patience):
			t.Error("it does not end")
		}
	})
}

// await waits until the condition gives nil.
func await(t *testing.T, what string, condition func() error) {
	t.Helper()
	var err error
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if err = condition(); err == nil {
			return
		}
	}
	t.Fatalf("%s: %v", what, err)
}

// bundles gives caBundle of both webhooks.
func bundles(ctx context.Context, m *Managed) (one, two []byte, err error) {
	c, err := admin.AdmissionregistrationV1().MutatingWebhookConfigurations().Get(ctx, m.Configuration, metav1.GetOptions{})
	if err != nil {
		return nil, nil, err
	}
	return c.Webhooks[0].ClientConfig.CABundle, c.Webhooks[1].ClientConfig.CABundle, nil
}

// secretCA gives the CA in the Secret.
func secretCA(ctx context.Context, m *Managed) (*x509.Certificate, error) {
	s, err := admin.CoreV1().Secrets(m.Namespace).Get(ctx, m.SecretName, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	if all := parse(s.Data["tls.crt"]); len(all) == 1 {
		return all[0], nil
	}
	return nil, fmt.Errorf("tls.crt is %q, want one certificate", s.Data["tls.crt"])
}

// newCA makes a CA that is valid from and to these times after now.
func newCA(t *testing.T, from, to time.Duration) *x509.Certificate {
	t.Helper()
	ca, _ := newCAWithKey(t, from, to)
	return ca
}

func newCAWithKey(t *testing.T, from, to time.Duration) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(int64(count.Add(1))), Subject: pkix.Name{CommonName: "test"},
		NotBefore: time.Now().Add(from), NotAfter: time.Now().Add(to),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c, key
}

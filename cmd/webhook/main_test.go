package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/util/cert"
)

func TestServesAndStops(t *testing.T) {
	dir, client := certificate(t)
	listen, health, metrics := freeAddress(t), freeAddress(t), freeAddress(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	log := &safeBuffer{}
	done := make(chan error, 1)
	go func() {
		done <- run(ctx, []string{"-listen", listen, "-health-listen", health, "-metrics-listen", metrics, "-cert-dir", dir, "-cluster=false", "-shutdown-delay=1ms", "-data-plane-image", "example.com/dataplane:test"}, log)
	}()
	waitFor(t, done, "http://"+health+"/readyz", http.StatusOK)
	if code, body := get(t, "http://"+health+"/healthz"); code != http.StatusOK {
		t.Errorf("/healthz: %d %s", code, body)
	}

	resp, err := client.Post("https://"+listen+"/mutate", "application/json", strings.NewReader(badReview))
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	if !bytes.Contains(body, []byte(`meshvirt.io/mode`)) || !bytes.Contains(body, []byte(`"allowed":false`)) {
		t.Errorf("answer %s", body)
	}
	_, counted := get(t, "http://"+metrics+"/metrics")
	if !strings.Contains(counted, `meshvirt_admission_requests_total{mode="off",reason="Invalid",result="denied"} 1`) {
		t.Errorf("/metrics does not count the denial")
	}
	leaf, err := x509.ParseCertificate(served(t, listen))
	if err != nil {
		t.Fatal(err)
	}
	const expires = "meshvirt_certificate_expiration_timestamp_seconds"
	_, value, _ := strings.Cut(counted, "\n"+expires+" ")
	value, _, _ = strings.Cut(value, "\n")
	if at, err := strconv.ParseFloat(value, 64); err != nil || int64(at) != leaf.NotAfter.Unix() {
		t.Errorf("%s is %q, want %d", expires, value, leaf.NotAfter.Unix())
	}
	if doc := read(t, "../../docs/metrics.md"); !bytes.Contains(doc, []byte("| `"+expires+"` | gauge |")) {
		t.Errorf("docs/metrics.md does not have %s", expires)
	}
	cancel()
	select {
	case err := <-done:
		if err != nil {
			t.Errorf("it ended with %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("it does not end")
	}
	if !strings.Contains(log.String(), `"result":"denied"`) {
		t.Errorf("log %s", log)
	}
}

// badReview asks about a pod that is denied.
const badReview = `{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":{"uid":"1","kind":{"version":"v1","kind":"Pod"},"operation":"CREATE",
	"object":{"metadata":{"labels":{"kubevirt.io":"virt-launcher"},"annotations":{"meshvirt.io/mode":"teleport"}},"spec":{"containers":[{"name":"compute"}]}}}}`

// certificate writes a certificate into a new directory, and gives a client that trusts it.
func certificate(t *testing.T) (dir string, client *http.Client) {
	t.Helper()
	return certificateFor(t, 0)
}

// certificateFor writes one that is valid for so long, 0 for a year, from an hour ago.
func certificateFor(t *testing.T, d time.Duration) (dir string, client *http.Client) {
	t.Helper()
	certPEM, keyPEM, err := cert.GenerateSelfSignedCertKeyWithOptions(cert.SelfSignedCertKeyOptions{Host: "127.0.0.1", MaxAge: d})
	if err != nil {
		t.Fatal(err)
	}
	dir = t.TempDir()
	for name, b := range map[string][]byte{"tls.crt": certPEM, "tls.key": keyPEM} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(certPEM)
	return dir, &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}, Timeout: 10 * time.Second}
}

func TestReadsResources(t *testing.T) {
	// As the chart writes it.
	o, err := parse([]string{"-cert-dir=x", `--proxy-resources={"limits":{"memory":"256Mi"},"requests":{}}`}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if memory := o.image.ProxyResources.Limits.Memory().String(); memory != "256Mi" || len(o.image.RulesResources.Limits) > 0 {
		t.Errorf("the relay's limit is %s of memory, the rules' limits are %v; want 256Mi and none", memory, o.image.RulesResources.Limits)
	}
}

func TestRefusesFlags(t *testing.T) {
	dir, _ := certificate(t)
	for args, want := range map[string]string{
		"-listen 9443":                                       `-listen is "9443": want host:port`,
		"-listen :0":                                         "port is \"0\", want 1 to 65535",
		"-default-mode teleport":                             `-default-mode is "teleport", want one of`,
		"-image-pull-policy Sometimes":                       `-image-pull-policy is "Sometimes", want Always`,
		"-data-plane-image=":                                 "-data-plane-image is empty",
		"-shutdown-delay -1s":                                "-shutdown-delay is -1s, want no time below zero",
		`-rules-resources {"request":{"cpu":"1"}}`:           `unknown field "request"`,
		`-rules-resources {"limits":{"nvidia.com/gpu":"1"}}`: "limits has nvidia.com/gpu, want cpu, memory or ephemeral-storage",
		`-proxy-resources {"requests":{"cpu":"-1"}}`:         "requests.cpu is -1, want more than zero",
		`-proxy-resources {"requests":{"cpu":"2"},"limits":{"cpu":"100m"}}`: "requests.cpu is 2, want at most the limit, 100m",
		"-colour red": "not defined: -colour",
		"-cluster=false -listen 127.0.0.1:1 -health-listen 127.0.0.1:99999 -cert-dir " + dir: "-health-listen",
		"-namespace=":                "-namespace is empty, want a name, or -cert-dir",
		"-namespace n -service=":     "-service is empty",
		"-namespace n -cert-secret=": "-cert-secret is empty",
	} {
		err := run(t.Context(), strings.Fields(args), io.Discard)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want %q", args, err, want)
		}
	}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

// waitFor waits until url answers with the code.
func waitFor(t *testing.T, done <-chan error, url string, code int) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); {
		select {
		case err := <-done:
			t.Fatalf("it ended: %v", err)
		case <-time.After(20 * time.Millisecond):
		}
		if resp, err := http.Get(url); err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == code {
				return
			}
		}
	}
	t.Fatalf("%s does not answer %d", url, code)
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// safeBuffer is written by the server's goroutines.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

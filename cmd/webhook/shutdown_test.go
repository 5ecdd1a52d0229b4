package main

import (
	"bytes"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// asProgram in the environment makes the test's own program the webhook.
const asProgram = "MESHVIRT_TEST_IS_WEBHOOK"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// A program is the webhook in a process of its own, since loggers are global.
type program struct {
	listen, health string // addresses
	log            *safeBuffer
	process        *os.Process
	done           chan error
}

// start starts one that serves the certificate in dir, and ends it with the test. It may not be ready yet.
func start(t *testing.T, dir string, args ...string) *program {
	t.Helper()
	p := &program{listen: freeAddress(t), health: freeAddress(t), log: &safeBuffer{}, done: make(chan error, 1)}
	cmd := exec.Command(os.Args[0], append(args, "-listen", p.listen, "-health-listen", p.health, "-metrics-listen=", "-cert-dir", dir, "-cluster=false")...)
	cmd.Env = append(os.Environ(), asProgram+"=1")
	cmd.Stderr = p.log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p.process = cmd.Process
	go func() { p.done <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		if t.Failed() {
			t.Logf("the webhook's log:\n%s", p.log)
		}
	})
	return p
}

// waitFor waits until the readiness probe is answered so.
func (p *program) waitFor(t *testing.T, code int) {
	t.Helper()
	waitFor(t, p.done, "http://"+p.health+"/readyz", code)
}

// A pod that Kubernetes ends is sent reviews until every API server knows: it answers them, and says
// that it is not ready. A second signal ends it at once.
func TestAnswersWhileItStops(t *testing.T) {
	dir, client := certificate(t)
	p := start(t, dir, "-shutdown-delay=1h")
	p.waitFor(t, http.StatusOK)

	if err := p.process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	p.waitFor(t, http.StatusServiceUnavailable)
	if code, body := get(t, "http://"+p.health+"/healthz"); code != http.StatusOK {
		t.Errorf("/healthz: %d %s, want the pod to be left alone", code, body)
	}
	// Twice, and so over two connections: the listener is still there.
	for range 2 {
		resp, err := client.Post("https://"+p.listen+"/mutate", "application/json", strings.NewReader(badReview))
		if err != nil {
			t.Fatalf("no answer while it stops: %v", err)
		}
		body, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if !bytes.Contains(body, []byte(`"allowed":false`)) {
			t.Errorf("answer %s", body)
		}
		if !resp.Close {
			t.Errorf("the connection is kept, although the end is near")
		}
	}

	if err := p.process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case <-p.done:
	case <-time.After(20 * time.Second):
		t.Fatal("a second signal does not end it")
	}
}

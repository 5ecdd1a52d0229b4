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

// A pod that Kubernetes ends is sent reviews until every API server knows: it answers them, and says
// that it is not ready. A second signal ends it at once.
func TestAnswersWhileItStops(t *testing.T) {
	dir, client := certificate(t)
	listen, health := freeAddress(t), freeAddress(t)
	cmd := exec.Command(os.Args[0], "-listen", listen, "-health-listen", health, "-metrics-listen=", "-cert-dir", dir, "-cluster=false", "-shutdown-delay=1h")
	cmd.Env = append(os.Environ(), asProgram+"=1")
	log := &safeBuffer{}
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	defer func() { _ = cmd.Process.Kill() }()
	waitFor(t, done, "http://"+health+"/readyz", http.StatusOK)

	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	waitFor(t, done, "http://"+health+"/readyz", http.StatusServiceUnavailable)
	if code, body := get(t, "http://"+health+"/healthz"); code != http.StatusOK {
		t.Errorf("/healthz: %d %s, want the pod to be left alone", code, body)
	}
	// Twice, and so over two connections: the listener is still there.
	for range 2 {
		resp, err := client.Post("https://"+listen+"/mutate", "application/json", strings.NewReader(badReview))
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

	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Fatalf("a second signal does not end it; log %s", log)
	}
}

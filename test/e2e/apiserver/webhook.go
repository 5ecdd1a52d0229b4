package apiserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	admissionregistration "k8s.io/api/admissionregistration/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvirt/meshvirt/tools"
)

// WebhookName is what the API server calls MeshVirt's webhook in its answers and metrics.
const WebhookName = "inject.meshvirt.io"

// starts bounds the tries to start the webhook: another process may take the port chosen for it.
const starts = 3

// Webhook is a process of the real cmd/webhook, which the API server calls as the chart configures it.
type Webhook struct {
	cluster *Cluster
	config  *admissionregistration.MutatingWebhookConfiguration
	args    []string
	// The addresses it serves on, host:port.
	reviews, health, metrics string
	process                  *os.Process
	exited                   chan error
}

// StartWebhook builds cmd/webhook, starts it with the arguments that the chart gives it, and registers
// the configuration that the chart renders. The values are as for helm's --set. It returns when the
// API server calls the webhook.
func (c *Cluster) StartWebhook(ctx context.Context, values ...string) (*Webhook, error) {
	chart, err := c.render(values)
	if err != nil {
		return nil, err
	}
	w := &Webhook{cluster: c, config: chart.config, args: chart.args}
	if err := w.writeCertificate(); err != nil {
		return nil, err
	}
	for try := 1; ; try++ {
		if w.reviews, w.health, w.metrics, err = freeAddresses(); err != nil {
			return nil, err
		}
		if err = w.Start(ctx); err == nil {
			break
		}
		if try == starts {
			return nil, err
		}
	}
	c.atStop(w.StopProcess)

	// The one change to what the chart renders: there is no Service here to reach the webhook by.
	for i := range w.config.Webhooks {
		to := &w.config.Webhooks[i].ClientConfig
		url := "https://" + w.reviews + *to.Service.Path
		to.URL, to.Service = &url, nil
	}
	if err := c.Client.Create(ctx, w.config); err != nil {
		return nil, fmt.Errorf("register the webhook: %w", err)
	}
	const probes = "meshvirt-probe"
	if err := c.Namespace(ctx, probes, nil); err != nil {
		return nil, err
	}
	return w, c.awaitReview(ctx, WebhookName, probes, probePod(map[string]string{"meshvirt.io/inject": "true"}))
}

// build compiles a command of this repository, such as "webhook", into the directory.
func build(dir, command string) (string, error) {
	root, err := tools.Root()
	if err != nil {
		return "", err
	}
	program := filepath.Join(dir, command)
	cmd := exec.Command("go", "build", "-trimpath", "-o", program, "./cmd/"+command)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build cmd/%s: %w\n%s", command, err, out)
	}
	return program, nil
}

// certificates is where the webhook's certificate is.
func (w *Webhook) certificates() string { return filepath.Join(w.cluster.dir, "certs") }

func (w *Webhook) writeCertificate() error {
	crt, key, err := w.cluster.authority.issue()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(w.certificates(), 0o700); err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(filepath.Join(w.certificates(), "tls.crt"), crt, 0o600),
		os.WriteFile(filepath.Join(w.certificates(), "tls.key"), key, 0o600))
}

// Start starts the process, again after StopProcess, and waits until it is ready.
func (w *Webhook) Start(ctx context.Context) error {
	program, err := w.cluster.program()
	if err != nil {
		return err
	}
	logs, err := w.cluster.log("meshvirt-webhook.log")
	if err != nil {
		return err
	}
	// Later flags win: the addresses and paths of a pod give way to those of this machine.
	process := exec.Command(program, slices.Concat(w.args, []string{
		"--listen=" + w.reviews, "--health-listen=" + w.health, "--metrics-listen=" + w.metrics, "--cert-dir=" + w.certificates(),
		"--shutdown-delay=0s", // nothing is sent to it when a test ends it
		"--cluster=false",     // tests that need it give the webhook the chart's rights
	})...)
	process.Stdout, process.Stderr = logs, logs
	if err := process.Start(); err != nil {
		return err
	}
	release, err := guard(process.Process.Pid)
	if err != nil {
		return errors.Join(err, process.Process.Kill(), process.Wait())
	}
	exited := make(chan error, 1)
	go func() {
		err := process.Wait()
		release()
		exited <- err
	}()
	w.process, w.exited = process.Process, exited

	deadline := time.Now().Add(patience)
	for {
		if _, err := get(ctx, "http://"+w.health+"/readyz"); err == nil {
			return nil
		}
		select {
		case end := <-exited:
			w.process = nil
			log, _ := os.ReadFile(logs.Name())
			return errors.Join(fmt.Errorf("the webhook ended at start, saying %q", log), end)
		case <-ctx.Done():
			return errors.Join(ctx.Err(), w.StopProcess())
		case <-time.After(poll):
		}
		if time.Now().After(deadline) {
			return errors.Join(fmt.Errorf("the webhook is not ready after %s (log %s)", patience, logs.Name()), w.StopProcess())
		}
	}
}

// get gives the body of an answer with status 200.
func get(ctx context.Context, url string) (string, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		return "", err
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		return "", fmt.Errorf("get %s: %s", url, response.Status)
	}
	body, err := io.ReadAll(response.Body)
	return string(body), err
}

// StopProcess ends the process as a kubelet would and leaves the configuration in the API server: an
// outage. It does nothing if no process runs.
func (w *Webhook) StopProcess() error {
	if w.process == nil {
		return nil
	}
	process := w.process
	w.process = nil
	if err := process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case err := <-w.exited:
		if err != nil {
			return fmt.Errorf("the webhook's end: %w", err)
		}
		return nil
	case <-time.After(patience):
		_, _ = process.Kill(), <-w.exited
		return fmt.Errorf("the webhook did not end within %s of SIGTERM", patience)
	}
}

// Close takes the webhook out of the API server and ends its process.
func (w *Webhook) Close(ctx context.Context) error {
	return errors.Join(client.IgnoreNotFound(w.cluster.Client.Delete(ctx, w.config)), w.StopProcess())
}

// Metrics reads the webhook's own metrics.
func (w *Webhook) Metrics(ctx context.Context) (string, error) {
	return get(ctx, "http://"+w.metrics+"/metrics")
}

// freeAddresses gives three addresses on loopback on which nobody listens now.
func freeAddresses() (a, b, c string, err error) {
	var free [3]string
	for i := range free {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return "", "", "", err
		}
		// Open until all are chosen, so that they differ.
		defer func() { _ = l.Close() }()
		free[i] = l.Addr().String()
	}
	return free[0], free[1], free[2], nil
}

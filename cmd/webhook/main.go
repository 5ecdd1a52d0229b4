// Command webhook is MeshVirt's mutating admission webhook.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	corev1 "k8s.io/api/core/v1"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
	"sigs.k8s.io/controller-runtime/pkg/webhook"

	"github.com/meshvirt/meshvirt/pkg/admit"
	"github.com/meshvirt/meshvirt/pkg/mutate"
	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/templates"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stderr)
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "meshvirt-webhook: %v; see meshvirt-webhook -help\n", err)
		os.Exit(1)
	}
}

// run serves until ctx ends. The log goes to out, a JSON object a line.
func run(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("meshvirt-webhook", flag.ContinueOnError)
	flags.SetOutput(out)
	listen := flags.String("listen", ":9443", "`address` to serve admission reviews on, by HTTPS")
	certDir := flags.String("cert-dir", "/certs", "`directory` with tls.crt and tls.key; they are read again when they change")
	healthListen := flags.String("health-listen", ":8081", "`address` of /healthz and /readyz, by HTTP")
	metricsListen := flags.String("metrics-listen", ":8080", "`address` of /metrics, by HTTP; empty serves none")
	image := flags.String("data-plane-image", templates.DefaultImage, "`image` of the containers that are injected")
	pull := flags.String("image-pull-policy", "", "pull `policy` of these containers: Always, IfNotPresent, Never or empty")
	mode := flags.String("default-mode", string(plan.Auto), "`mode` of pods whose annotations name none")
	if err := flags.Parse(args); err != nil {
		return err
	}
	host, port, err := splitAddress(*listen)
	if err != nil {
		return fmt.Errorf("-listen is %q: %w", *listen, err)
	}
	if !slices.Contains(plan.Modes, plan.Mode(*mode)) {
		return fmt.Errorf("-default-mode is %q, want one of %v", *mode, plan.Modes)
	}
	policy := corev1.PullPolicy(*pull)
	if !slices.Contains([]corev1.PullPolicy{"", corev1.PullAlways, corev1.PullIfNotPresent, corev1.PullNever}, policy) {
		return fmt.Errorf("-image-pull-policy is %q, want Always, IfNotPresent, Never or nothing", *pull)
	}
	if *image == "" {
		return errors.New("-data-plane-image is empty, want an image")
	}

	log := slog.New(slog.NewJSONHandler(out, nil))
	ctrllog.SetLogger(logr.FromSlogHandler(log.Handler()))
	// Our own metrics beside controller-runtime's, which are global.
	registry := prometheus.NewRegistry()
	server := webhook.NewServer(webhook.Options{Host: host, Port: port, CertDir: *certDir})
	server.Register(admit.Path, admit.New(mutate.Config{
		Image:       templates.Image{Name: *image, PullPolicy: policy},
		DefaultMode: plan.Mode(*mode),
	}, log, registry))

	health := http.NewServeMux()
	health.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	health.HandleFunc("/readyz", func(w http.ResponseWriter, r *http.Request) {
		if err := server.StartedChecker()(r); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if err := serve(ctx, cancel, *healthListen, health); err != nil {
		return fmt.Errorf("-health-listen: %w", err)
	}
	if *metricsListen != "" {
		m := http.NewServeMux()
		m.Handle("/metrics", promhttp.HandlerFor(prometheus.Gatherers{registry, metrics.Registry}, promhttp.HandlerOpts{}))
		if err := serve(ctx, cancel, *metricsListen, m); err != nil {
			return fmt.Errorf("-metrics-listen: %w", err)
		}
	}
	log.Info("starting", "release", plan.Release, "listen", *listen, "dataPlaneImage", *image, "defaultMode", *mode)
	if err := server.Start(ctx); err != nil {
		return err
	}
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// serve starts a plain HTTP server that ends with ctx; if it fails later, it ends everything.
func serve(ctx context.Context, cancel context.CancelCauseFunc, address string, h http.Handler) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	s := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}
	context.AfterFunc(ctx, func() { _ = s.Close() })
	go func() {
		if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			cancel(fmt.Errorf("serve %s: %w", address, err))
		}
	}()
	return nil
}

func splitAddress(s string) (host string, port int, err error) {
	host, p, err := net.SplitHostPort(s)
	if err != nil {
		return "", 0, errors.New(`want host:port or :port, such as ":9443"`)
	}
	n, err := strconv.ParseUint(p, 10, 16)
	if err != nil || n == 0 {
		return "", 0, fmt.Errorf("port is %q, want 1 to 65535", p)
	}
	return host, int(n), nil
}

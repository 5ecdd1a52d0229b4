// Command webhook is MeshVirt's mutating admission webhook.
package main

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"k8s.io/klog/v2"
	"sigs.k8s.io/controller-runtime/pkg/client/config"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
	"sigs.k8s.io/controller-runtime/pkg/webhook"

	"github.com/meshvirt/meshvirt/certs"
	"github.com/meshvirt/meshvirt/pkg/admit"
	"github.com/meshvirt/meshvirt/pkg/mutate"
	"github.com/meshvirt/meshvirt/pkg/plan"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	err := run(ctx, os.Args[1:], os.Stderr)
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "meshvirt-webhook: %v; see meshvirt-webhook -help\n", err)
		os.Exit(1)
	}
}

// run serves until signalled ends, and -shutdown-delay longer. The log goes to out, a JSON object a line.
func run(signalled context.Context, args []string, out io.Writer) error {
	o, err := parse(args, out)
	if err != nil {
		return err
	}
	log := slog.New(slog.NewJSONHandler(out, nil))
	ctrllog.SetLogger(logr.FromSlogHandler(log.Handler()))
	klog.SetLogger(logr.FromSlogHandler(log.Handler())) // client-go's
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(signalled))
	defer cancel(nil)
	defer context.AfterFunc(signalled, func() {
		log.Info("stopping", "shutdownDelay", o.shutdownDelay.String())
		time.AfterFunc(o.shutdownDelay, func() { cancel(nil) })
	})()
	// Our own metrics beside controller-runtime's, which are global.
	registry := prometheus.NewRegistry()

	certificate, err := startCertificate(ctx, cancel, o, log)
	if err != nil {
		return err
	}
	registry.MustRegister(expiry(certificate))
	server := webhook.NewServer(webhook.Options{
		Host: o.host, Port: o.port,
		TLSOpts: []func(*tls.Config){func(c *tls.Config) { c.GetCertificate = certificate.GetCertificate }},
	})
	handler := admit.New(mutate.Config{Image: o.image, DefaultMode: o.mode}, log, registry)
	if handler.Cluster, err = watchCluster(ctx, o, log, registry); err != nil {
		return err
	}
	server.Register(admit.Path, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if signalled.Err() != nil {
			// API servers keep connections, and would go on with this one until the end of the delay, when a
			// review may meet its closing.
			w.Header().Set("Connection", "close")
		}
		handler.ServeHTTP(w, r)
	}))

	health := http.NewServeMux()
	health.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	health.HandleFunc("/readyz", func(w http.ResponseWriter, r *http.Request) {
		err := certificate.Ready()
		if err == nil {
			err = server.StartedChecker()(r)
		}
		if signalled.Err() != nil {
			err = errors.New("stopping: send no new requests, those that come are answered")
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	if err := serve(ctx, cancel, o.healthListen, health); err != nil {
		return fmt.Errorf("-health-listen: %w", err)
	}
	if o.metricsListen != "" {
		m := http.NewServeMux()
		m.Handle("/metrics", promhttp.HandlerFor(prometheus.Gatherers{registry, metrics.Registry}, promhttp.HandlerOpts{}))
		if err := serve(ctx, cancel, o.metricsListen, m); err != nil {
			return fmt.Errorf("-metrics-listen: %w", err)
		}
	}
	log.Info("starting", "release", plan.Release, "listen", o.listen, "dataPlaneImage", o.image.Name, "defaultMode", o.mode)
	if err := server.Start(ctx); err != nil {
		return err
	}
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// servingCertificate is what API servers see of the webhook.
type servingCertificate interface {
	// Start keeps it valid, or up with its files, until the context ends.
	Start(context.Context) error
	GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error)
	// Ready says why API servers would refuse it.
	Ready() error
}

// startCertificate starts what keeps the serving certificate; if that fails later, it ends everything.
func startCertificate(ctx context.Context, cancel context.CancelCauseFunc, o *options, log *slog.Logger) (c servingCertificate, err error) {
	if o.certDir != "" {
		if c, err = certs.NewMounted(o.certDir); err != nil {
			return nil, fmt.Errorf("-cert-dir is %w", err)
		}
	} else {
		rest, err := config.GetConfig()
		if err != nil {
			return nil, fmt.Errorf("-cert-dir is empty, so the webhook needs the API server: %w", err)
		}
		c = &certs.Managed{
			RESTConfig: rest, Namespace: o.namespace, SecretName: o.certSecret, Configuration: o.configuration, Log: log,
			// The first is what API servers ask for; the others are for people who look from inside the cluster.
			DNSNames: []string{o.service + "." + o.namespace + ".svc", o.service + "." + o.namespace, o.service},
		}
	}
	go func() {
		if err := c.Start(ctx); err != nil {
			cancel(fmt.Errorf("keep the certificate: %w", err))
		}
	}()
	return c, nil
}

// expiry tells monitoring until when the served certificate is valid.
func expiry(c servingCertificate) prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "meshvirt_certificate_expiration_timestamp_seconds",
		Help: "When the serving certificate expires, in Unix time; 0 if there is none.",
	}, func() float64 {
		now, err := c.GetCertificate(nil)
		if err != nil {
			return 0
		}
		return float64(now.Leaf.NotAfter.Unix())
	})
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

// Command noop is the peer of cmd/webhook: controller-runtime's webhook server with its cheapest handler.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"

	"github.com/go-logr/logr"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/webhook"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/meshvirt/meshvirt/pkg/admit"
)

func main() {
	port := flag.Int("port", 0, "`port` of 127.0.0.1 to serve reviews on")
	dir := flag.String("cert-dir", "", "`directory` with tls.crt and tls.key")
	flag.Parse()
	ctrllog.SetLogger(logr.Discard())
	server := webhook.NewServer(webhook.Options{Host: "127.0.0.1", Port: *port, CertDir: *dir})
	server.Register(admit.Path, &webhook.Admission{Handler: admission.HandlerFunc(func(context.Context, admission.Request) admission.Response {
		return admission.Allowed("")
	})})
	if err := server.Start(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "noop:", err)
		os.Exit(1)
	}
}

// Command noop is the peer of cmd/webhook: controller-runtime's webhook server with its cheapest handler,
// which allows what comes, or gives the same patch to all.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"

	"github.com/go-logr/logr"
	admissionv1 "k8s.io/api/admission/v1"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/webhook"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/meshvirt/meshvirt/pkg/admit"
)

func main() {
	port := flag.Int("port", 0, "`port` of 127.0.0.1 to serve reviews on")
	dir := flag.String("cert-dir", "", "`directory` with tls.crt and tls.key")
	file := flag.String("patch", "", "JSON patch `file` to answer with; without it nothing is changed")
	flag.Parse()
	ctrllog.SetLogger(logr.Discard())
	if err := serve(*port, *dir, *file); err != nil {
		fmt.Fprintln(os.Stderr, "noop:", err)
		os.Exit(1)
	}
}

func serve(port int, dir, file string) error {
	var patch []byte
	if file != "" {
		var err error
		if patch, err = os.ReadFile(file); err != nil {
			return err
		}
	}
	server := webhook.NewServer(webhook.Options{Host: "127.0.0.1", Port: port, CertDir: dir})
	server.Register(admit.Path, &webhook.Admission{Handler: admission.HandlerFunc(func(context.Context, admission.Request) admission.Response {
		answer := admission.Allowed("")
		if patch != nil {
			answer.Patch, answer.PatchType = patch, new(admissionv1.PatchTypeJSONPatch)
		}
		return answer
	})})
	return server.Start(context.Background())
}

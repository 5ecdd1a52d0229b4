package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/templates"
)

// namespaceFile is where a pod that mounts its ServiceAccount's token finds its namespace.
const namespaceFile = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"

type options struct {
	listen, healthListen, metricsListen string
	host                                string
	port                                int

	image templates.Image
	mode  plan.Mode

	cluster bool

	shutdownDelay time.Duration

	certDir string
	// Of the certificate that is made if certDir is empty.
	namespace, service, certSecret, configuration string
}

// parse reads the flags; complaints and help go to out.
func parse(args []string, out io.Writer) (*options, error) {
	o := &options{}
	flags := flag.NewFlagSet("meshvirt-webhook", flag.ContinueOnError)
	flags.SetOutput(out)
	flags.StringVar(&o.listen, "listen", ":9443", "`address` to serve admission reviews on, by HTTPS")
	flags.StringVar(&o.healthListen, "health-listen", ":8081", "`address` of /healthz and /readyz, by HTTP")
	flags.StringVar(&o.metricsListen, "metrics-listen", ":8080", "`address` of /metrics, by HTTP; empty serves none")
	flags.StringVar(&o.image.Name, "data-plane-image", templates.DefaultImage, "`image` of the containers that are injected")
	pull := flags.String("image-pull-policy", "", "pull `policy` of these containers: Always, IfNotPresent, Never or empty")
	flags.Func("rules-resources", "`resources` of the container meshvirt-rules in place of the default, as JSON with requests and limits", into(&o.image.RulesResources))
	flags.Func("proxy-resources", "the same of meshvirt-proxy", into(&o.image.ProxyResources))
	mode := flags.String("default-mode", string(plan.Auto), "`mode` of pods whose annotations name none")
	flags.BoolVar(&o.cluster, "cluster", true, "watch VirtualMachineInstances and namespaces, and write events;\n"+
		"if false, the pod alone decides")
	flags.DurationVar(&o.shutdownDelay, "shutdown-delay", 0, "`time` to go on serving after SIGTERM, while /readyz says 503: API servers\n"+
		"need a moment to learn that a pod is going")
	flags.StringVar(&o.certDir, "cert-dir", "", "`directory` with tls.crt and tls.key, read again when they change;\n"+
		"empty makes and rotates a certificate, by a CA in a Secret (the flags below)")
	flags.StringVar(&o.namespace, "namespace", ownNamespace(), "`namespace` of the Secret and the Service; the default is that of the pod")
	flags.StringVar(&o.service, "service", "meshvirt", "`name` of the Service that the certificate is for")
	flags.StringVar(&o.certSecret, "cert-secret", "meshvirt-webhook-ca", "`name` of the Secret with the CA, made if it is not there")
	flags.StringVar(&o.configuration, "configuration", "meshvirt-webhook", "`name` of the MutatingWebhookConfiguration that is made to trust the CA")
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	o.mode, o.image.PullPolicy = plan.Mode(*mode), corev1.PullPolicy(*pull)
	var err error
	if o.host, o.port, err = splitAddress(o.listen); err != nil {
		return nil, fmt.Errorf("-listen is %q: %w", o.listen, err)
	}
	if !slices.Contains(plan.Modes, o.mode) {
		return nil, fmt.Errorf("-default-mode is %q, want one of %v", *mode, plan.Modes)
	}
	if !slices.Contains([]corev1.PullPolicy{"", corev1.PullAlways, corev1.PullIfNotPresent, corev1.PullNever}, o.image.PullPolicy) {
		return nil, fmt.Errorf("-image-pull-policy is %q, want Always, IfNotPresent, Never or nothing", *pull)
	}
	if o.shutdownDelay < 0 {
		return nil, fmt.Errorf("-shutdown-delay is %v, want no time below zero", o.shutdownDelay)
	}
	if o.image.Name == "" {
		return nil, errors.New("-data-plane-image is empty, want an image")
	}
	if o.certDir != "" {
		return o, nil
	}
	for name, value := range map[string]string{"namespace": o.namespace, "service": o.service, "cert-secret": o.certSecret, "configuration": o.configuration} {
		if value == "" {
			return nil, fmt.Errorf("-%s is empty, want a name, or -cert-dir", name)
		}
	}
	return o, nil
}

// ownNamespace gives the namespace of the pod that this runs in, or nothing.
func ownNamespace() string {
	if n := os.Getenv("POD_NAMESPACE"); n != "" {
		return n
	}
	b, err := os.ReadFile(namespaceFile)
	if err != nil {
		return "" // in no pod, or without a token
	}
	return strings.TrimSpace(string(b))
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

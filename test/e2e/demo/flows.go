package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/test/e2e/netlab"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/sidecar"
)

// meanings say what the modes are, for the headings.
var meanings = map[plan.Mode]string{
	plan.Off:      "what Istio and KubeVirt do by themselves",
	plan.Rules:    "one nftables table, everything in the kernel",
	plan.NATProxy: "one nftables table and a relay in the pod",
}

// promised are the modes that promise everything below. Mode off promises nothing.
var promised = []plan.Mode{plan.Rules, plan.NATProxy}

// want is what a member of a mesh may expect of a flow.
type want string

const (
	meshed   want = "through sidecar" // once, by the listener of its direction
	direct   want = "past sidecar"    // since the mesh does not handle it, or was told not to
	answered want = "sidecar answers" // with DNS capture, questions end there
	refused  want = "refused"
)

// expectation is one line of the demo.
type expectation struct {
	flow string // of netlab.Flows
	name string
	want want
}

var expectations = []expectation{
	{"egress-tcp4", "TCP out, IPv4", meshed},
	{"egress-tcp6", "TCP out, IPv6", meshed},
	{"egress-service4", "HTTP to a Service", meshed},
	{"ingress-tcp4", "TCP in, IPv4", meshed},
	{"ingress-tcp6", "TCP in, IPv6", meshed},
	{"ingress-ssh4", "SSH in (port 22)", meshed},
	{"probe-guest", "HTTP probe from the node", meshed},
	{"egress-excluded-cidr", "TCP out, excluded CIDR", direct},
	{"egress-excluded-port", "TCP out, excluded port", direct},
	{"udp-out4", "UDP out, IPv4", direct},
	{"udp-in4", "UDP in, IPv4", direct},
	{"udp-in6", "UDP in, IPv6", direct},
	{"dns-udp", "DNS", answered},
	{"attack-loopback", "guest to pod's 127.0.0.1", refused},
}

// met reports whether the flow went as wanted.
func met(w want, r netlab.Result) bool {
	switch w {
	case meshed:
		if r.Flow.From == netlab.Guest {
			return r.Passed(sidecar.Out)
		}
		return r.Passed(sidecar.In)
	case direct:
		return r.Passed()
	case answered:
		return r.OK && r.Answer == sidecar.DNSAnswer.String()
	case refused:
		return !r.OK
	}
	return false
}

// outcome says in a word or two what happened instead of what was wanted.
func outcome(r netlab.Result) string {
	switch {
	case !r.OK:
		return "fails"
	case strings.HasPrefix(r.Flow.Network, "raw-"):
		return "gets through"
	case len(r.Via) > 0:
		return "through sidecar"
	default:
		return "past sidecar"
	}
}

// broken is nil if every promise was kept.
func broken(outcomes map[plan.Mode][]netlab.Result) error {
	var lines []string
	for _, mode := range modes {
		if !slices.Contains(promised, mode) {
			continue
		}
		for i, r := range outcomes[mode] {
			if e := expectations[i]; !met(e.want, r) {
				lines = append(lines, fmt.Sprintf("%s: %s: want %s, got %s", mode, e.name, e.want, r.Outcome()))
			}
		}
	}
	if len(lines) == 0 {
		return nil
	}
	return fmt.Errorf("promises not kept:\n  %s", strings.Join(lines, "\n  "))
}

// Firstform runs in a virtual machine whose kernel has what Istio's ambient mode needed on nodes in its first
// form. It makes a lab there for each of its cases, and writes what came of flows.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"time"

	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/templates"
	"github.com/meshvirt/meshvirt/test/e2e/netlab"
)

// Where the machine has programs. Labnode is its init.
const (
	labnode       = "/init"
	meshvirtRules = "/bin/meshvirt-rules"
)

// ambient is a plan for the lab's pod in today's form of ambient mode.
var ambient = plan.Plan{
	Mode: plan.Ambient, Interfaces: []string{netlab.Bridge}, PodInterface: netlab.PodLink, Guest: plan.Guest{IPv4: netlab.GuestIP4},
	Mesh:     plan.Mesh{OutboundPort: 15001, InboundPort: 15006, OwnPorts: []uint16{15008}},
	Outbound: plan.Outbound{All: true}, Inbound: plan.Inbound{All: true},
}

// timeout bounds all of it, patience an attempt: everything is emulated here.
const (
	timeout  = 4 * time.Minute
	patience = 8 * time.Second
)

// flows are those with a VM at one end, over IPv4: the form knew no other.
var flows = []string{"egress-tcp4", "egress-half4", "egress-banner4", "egress-service4", "ingress-tcp4", "ingress-half4", "ingress-ssh4",
	"probe-guest", "udp-out4", "udp-in4", "dns-udp", "icmp4", "pod-egress"}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "firstform:", err)
		os.Exit(1)
	}
}

func run() error {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	outcomes := map[string]map[string]string{}
	for name, c := range map[string]struct{ member, rules bool }{
		"member": {true, false}, "no member": {false, false}, "member with the rules of mode ambient": {true, true},
	} {
		o, err := check(ctx, c.member, c.rules)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		outcomes[name] = o
	}
	return json.NewEncoder(os.Stdout).Encode(outcomes)
}

func check(ctx context.Context, member, rules bool) (map[string]string, error) {
	program, err := os.Open(labnode)
	if err != nil {
		return nil, err
	}
	defer program.Close()
	l, err := netlab.New(ctx, netlab.Options{Program: program, Timeout: patience})
	if err != nil {
		return nil, err
	}
	defer l.Close()
	if err := l.FirstAmbient(ctx); err != nil {
		return nil, fmt.Errorf("ambient redirection: %w", err)
	}
	if member {
		if err := l.FirstAmbientEnrol(); err != nil {
			return nil, fmt.Errorf("enrol the pod: %w", err)
		}
	}
	if rules {
		c, err := templates.Rules(ambient, templates.Image{Name: templates.DefaultImage}, false)
		if err != nil {
			return nil, err
		}
		// Not as a container: a root file system that is an initramfs cannot be left.
		cmd := exec.CommandContext(ctx, meshvirtRules, c.Args...)
		for _, e := range c.Env {
			cmd.Env = append(cmd.Env, e.Name+"="+e.Value)
		}
		if _, err := l.Namespace().Run(cmd); err != nil {
			return nil, err
		}
	}
	if err := l.KubeVirt(ctx, netlab.FirstAmbientRecording); err != nil {
		return nil, err
	}
	if err := l.StartGuest(ctx); err != nil {
		return nil, err
	}
	outcomes := map[string]string{}
	for _, name := range flows {
		outcomes[name] = l.Check(ctx, netlab.FlowNamed(name)).Outcome()
	}
	from, to, err := l.Tunnelled()
	outcomes["tunnelled"] = fmt.Sprintf("from members %t, to members %t", from > 0, to > 0)
	return outcomes, err
}

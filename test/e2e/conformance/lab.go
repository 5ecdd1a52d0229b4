package main

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/test/e2e/netlab"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/agent"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/sidecar"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/vm"
)

// start makes the pod's network and runs the pod in it, as it was admitted.
func (r *runner) start(ctx context.Context, l lab, machine *vm.VM) (*netlab.Lab, error) {
	if l.err != nil {
		return nil, fmt.Errorf("cannot be represented: %w", l.err)
	}
	pod, err := l.admit(l.mode)
	if err != nil {
		return nil, err
	}
	if r.without {
		pod.Spec.InitContainers = slices.DeleteFunc(slices.Clone(pod.Spec.InitContainers), func(c corev1.Container) bool { return strings.HasPrefix(c.Name, "meshvirt-") })
	}
	o := netlab.Options{DualStack: l.dual, IPv6Only: l.ipv6Only, Pod: pod, Image: r.image, Timeout: bulkBound}
	if l.guest == machineGuest {
		o.VM = machine
	}
	net, err := netlab.New(ctx, o)
	if err != nil {
		return nil, err
	}
	if err := r.build(ctx, net, l, pod); err != nil {
		return net, err
	}
	return net, l.serve(ctx, net)
}

func (r *runner) build(ctx context.Context, net *netlab.Lab, l lab, pod *corev1.Pod) error {
	if l.mesh == ambientMesh && !l.later {
		if err := r.enrol(ctx, net, l); err != nil {
			return err
		}
	}
	var proxy *sidecar.Config
	if _, err := net.RunContainers(ctx, pod, func(c corev1.Container) (sidecar.Config, error) {
		cfg, err := r.istioInit(ctx, net, l, c)
		proxy = &cfg
		return cfg, err
	}); err != nil {
		return err
	}
	if proxy != nil && !slices.ContainsFunc(pod.Spec.InitContainers, func(c corev1.Container) bool { return c.Name == "istio-proxy" }) {
		if err := net.StartSidecar(ctx, *proxy); err != nil {
			return err
		}
	}
	if l.guestIsProcess() {
		return net.Namespace().Sysctl("ipv4/ip_unprivileged_port_start", "0") // KubeVirt's, for passt
	}
	rules, err := r.corpus.kubevirtRules(l.vmi)
	if err != nil {
		return err
	}
	if err := net.KubeVirtRules(ctx, rules); err != nil {
		return fmt.Errorf("KubeVirt's rules: %w", err)
	}
	if err := net.StartGuest(ctx); err != nil {
		return err
	}
	if l.mesh == ambientMesh && l.later {
		return r.enrol(ctx, net, l)
	}
	return nil
}

// istioInit writes what istio-init was recorded to write: as it was or, after MeshVirt has changed its
// arguments, as it would be with those.
func (r *runner) istioInit(ctx context.Context, net *netlab.Lab, l lab, c corev1.Container) (sidecar.Config, error) {
	env := map[string]string{}
	for _, e := range c.Env {
		env[e.Name] = e.Value
	}
	rules, told, err := r.corpus.istio.Recorded(l.istio)
	if err == nil && l.mode != alone {
		rules, err = r.corpus.istio.Adapted(l.istio, slices.Concat(c.Command, c.Args), env)
	}
	if err != nil {
		return sidecar.Config{}, err
	}
	backend := netlab.Backend(l.backend)
	if l.backend == nativeNFT {
		backend = ""
	}
	return sidecar.Config{
			IPv6: told.DualStack, DNS: told.DNS, Transparent: told.TProxy,
			UID: told.UID, GID: told.GID, OutboundPort: told.OutboundPort, InboundPort: told.InboundPort,
		},
		net.IstioRules(ctx, backend, istioRules(l.istio, rules))
}

// enrol has the pod join an ambient mesh. MeshVirt has taken the annotation for the interface away.
func (r *runner) enrol(ctx context.Context, net *netlab.Lab, l lab) error {
	rules, err := r.corpus.ambient.Rules(l.ambient, l.mode != plan.Ambient)
	if err != nil {
		return err
	}
	backend := netlab.Backend(l.backend)
	if l.backend == nativeNFT {
		backend = ""
	}
	if err := net.AmbientRules(ctx, backend, rules); err != nil {
		return err
	}
	return net.StartZtunnel(ctx, sidecar.Config{IPv6: l.dual, DNS: rules.DNS})
}

// serve opens what the flows go to.
func (l lab) serve(ctx context.Context, net *netlab.Lab) error {
	tcp, udp := map[netlab.Host][]uint16{}, []uint16{}
	known := map[netip.Addr]bool{netlab.PeerIP4: true, netlab.PeerIP6: true, netlab.ServiceIP4: true, netlab.ServiceIP6: true, netlab.DNSIP4: true, netlab.DNSIP6: true, netlab.ExcludedIP4: true}
	for _, f := range l.flows() {
		to := f.To.Addr()
		switch {
		case strings.HasPrefix(f.name, "migration-port"):
			if err := netlab.Open(ctx, net.Pod, []uint16{f.To.Port()}, nil); err != nil {
				return err
			}
		case f.Network == "tcp" && strings.HasPrefix(f.name, "egress-"):
			if !known[to] {
				if err := net.ServeAt(to); err != nil {
					return err
				}
				known[to] = true
			}
			tcp[netlab.Peer] = append(tcp[netlab.Peer], f.To.Port())
		case f.Network == "tcp" && (strings.HasPrefix(f.name, "ingress-") || f.name == "pod-to-guest"):
			if f.Kind != agent.Banner {
				tcp[netlab.Guest] = append(tcp[netlab.Guest], f.To.Port())
			}
		case strings.HasPrefix(f.name, "udp-in"):
			udp = append(udp, f.To.Port())
		}
	}
	// The lab has opened some of these itself.
	atPeer := slices.DeleteFunc(tcp[netlab.Peer], func(p uint16) bool { return p == netlab.SSHPort })
	if err := netlab.Open(ctx, net.Peer, atPeer, nil); err != nil {
		return err
	}
	if !l.guestIsProcess() {
		var addrs []netip.Addr
		for _, h := range l.families() {
			addrs = append(addrs, h.guest)
		}
		return netlab.Open(ctx, net.Guest, tcp[netlab.Guest], udp, addrs...)
	}
	if err := net.Pod.Listen(ctx, agent.Listen{Network: "tcp", Addr: netip.AddrPortFrom(netip.IPv6Unspecified(), netlab.SSHPort), Kind: agent.Banner}); err != nil {
		return err
	}
	return netlab.Open(ctx, net.Pod, tcp[netlab.Guest], udp, net.PodIPs()...)
}

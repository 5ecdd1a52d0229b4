package netlab

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/agent"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/container"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/sidecar"
)

// startup bounds the wait for a container to be ready.
const startup = 30 * time.Second

// RunPod does what kubelet, Istio's containers and KubeVirt do with an admitted pod, in their order, up to
// a guest that runs. KubeVirt's rules are those of a recording (see kubevirt.Rules). It gives
// MeshVirt's containers that run on, by name.
func (l *Lab) RunPod(ctx context.Context, pod *corev1.Pod, recording string) (map[string]*container.Process, error) {
	running, err := l.RunContainers(ctx, pod, func(c corev1.Container) (sidecar.Config, error) {
		rules, err := l.IstioInitContainer(ctx, NFT, c)
		return sidecar.Config{IPv6: rules.DualStack, DNS: rules.DNS, Transparent: rules.TProxy, Quiet: l.Quiet}, err
	})
	if err != nil {
		return nil, err
	}
	if err := l.KubeVirt(ctx, recording); err != nil {
		return nil, fmt.Errorf("KubeVirt's rules: %w", err)
	}
	return running, l.StartGuest(ctx)
}

// RunContainers is RunPod up to KubeVirt's work. The function given does what istio-init does, and says
// what istio-proxy then is like.
func (l *Lab) RunContainers(ctx context.Context, pod *corev1.Pod, istioInit func(corev1.Container) (sidecar.Config, error)) (map[string]*container.Process, error) {
	mesh := sidecar.Config{Quiet: l.Quiet}
	running := map[string]*container.Process{}
	for _, c := range pod.Spec.InitContainers {
		var err error
		switch {
		case c.Name == "istio-init":
			mesh, err = istioInit(c)
		case c.Name == "istio-proxy":
			err = l.StartSidecar(ctx, mesh)
		case !strings.HasPrefix(c.Name, "meshvirt-"):
			// KubeVirt's own have no part in the network.
		case c.RestartPolicy == nil:
			err = l.RunInit(ctx, c)
		default:
			running[c.Name], err = l.startNative(ctx, c)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", c.Name, err)
		}
	}
	return running, nil
}

// startNative starts a native sidecar of ours and waits, as a kubelet does, until it has started up.
func (l *Lab) startNative(ctx context.Context, c corev1.Container) (*container.Process, error) {
	process, err := l.Start(c)
	if err != nil {
		return nil, err
	}
	for _, e := range c.Env {
		if p, err := plan.Decode(e.Value); e.Name == plan.Env && err == nil && p.Proxy != nil {
			l.NamePort(p.Proxy.OutboundPort, c.Name)
			l.NamePort(p.Proxy.InboundPort, c.Name)
			if p.Proxy.DNSPort != 0 {
				l.NamePort(p.Proxy.DNSPort, c.Name)
				l.NamePort(p.Proxy.DNSPort+1, c.Name)
			}
		}
	}
	if c.StartupProbe == nil {
		return process, nil
	}
	ctx, cancel := context.WithTimeout(ctx, startup)
	defer cancel()
	if err := l.WaitReady(ctx, c, c.StartupProbe); err != nil {
		return nil, fmt.Errorf("%w\n%s", err, process.Output())
	}
	return process, nil
}

// ServeAt gives the peer another address, to which the node knows the way.
func (l *Lab) ServeAt(a netip.Addr) error {
	host := netip.PrefixFrom(a, a.BitLen())
	if err := l.peer.Do(func() error { return configure("lo", []string{host.String()}, nil) }); err != nil {
		return err
	}
	via := PeerIP4
	if a.Is6() {
		via = PeerIP6
	}
	return l.node.Do(func() error { return configure("peer", nil, []string{host.String() + " " + via.String()}) })
}

// Open opens servers of Echo on more ports: of TCP, and of UDP at the addresses given.
func Open(ctx context.Context, on *agent.Client, tcp, udp []uint16, at ...netip.Addr) error {
	var servers []agent.Listen
	for _, port := range tcp {
		servers = append(servers, agent.Listen{Network: "tcp", Addr: netip.AddrPortFrom(netip.IPv6Unspecified(), port), Kind: agent.Echo})
	}
	for _, port := range udp {
		for _, a := range at {
			servers = append(servers, agent.Listen{Network: "udp", Addr: netip.AddrPortFrom(a, port), Kind: agent.Echo})
		}
	}
	return on.Listen(ctx, servers...)
}

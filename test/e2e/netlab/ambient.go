package netlab

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/meshvirt/meshvirt/test/e2e/netlab/agent"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/istio"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/sidecar"
)

// AmbientEnrol does what istio-cni does when a pod joins an ambient mesh: rules and a policy route in the
// pod, and on the node the address from which the kubelet's probes come. It may come before KubeVirt's
// work (the pod starts in the mesh) or after it (it joins later).
func (l *Lab) AmbientEnrol(ctx context.Context, backend Backend, o istio.AmbientOptions) (istio.Rules, error) {
	r, err := istio.Ambient(o)
	if err != nil {
		return r, err
	}
	if err := l.load(ctx, backend, r); err != nil {
		return r, err
	}
	if err := l.pod.Do(func() error { return ambientRoutes(o.DualStack) }); err != nil {
		return r, fmt.Errorf("policy route: %w", err)
	}
	return r, l.node.Do(func() error {
		return configure("lo", []string{ProbeIP4.String() + "/32", ProbeIP6.String() + "/128"}, nil)
	})
}

func ambientRoutes(dual bool) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	everything := map[int]netip.Prefix{unix.AF_INET: netip.MustParsePrefix("0.0.0.0/0")}
	if dual {
		everything[unix.AF_INET6] = netip.MustParsePrefix("::/0")
	}
	for family, dst := range everything {
		rule, mask := netlink.NewRule(), uint32(istio.AmbientMask)
		rule.Family, rule.Priority, rule.Table = family, istio.AmbientRulePriority, istio.AmbientTable
		rule.Mark, rule.Mask = istio.AmbientMark, &mask
		if err := netlink.RuleAdd(rule); err != nil {
			return fmt.Errorf("rule: %w", err)
		}
		route := &netlink.Route{
			LinkIndex: lo.Attrs().Index, Dst: agent.IPNet(dst), Table: istio.AmbientTable,
			Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST,
		}
		if err := netlink.RouteAdd(route); err != nil {
			return fmt.Errorf("route: %w", err)
		}
	}
	return nil
}

// StartZtunnel starts the stand-in of the node's proxy, with its sockets in the pod, and returns when
// it listens.
func (l *Lab) StartZtunnel(ctx context.Context, cfg sidecar.Config) error {
	return l.startMesh(ctx, "ztunnel", 0, cfg, sidecar.Outbound, sidecar.Inbound, sidecar.HBONE, sidecar.DNSPort)
}

package walk

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/meshvirt/meshvirt/pkg/interpreter"
	"github.com/meshvirt/meshvirt/pkg/nft"
	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/rules"
)

// An other is a rule of Istio's or KubeVirt's, as far as a whole way needs it. Their tables are not ours to
// interpret: test/e2e/netlab holds these few against the recorded ones.
type other struct {
	who      string
	hook     nft.Hook
	nat      bool
	priority int32
	do       func(*interpreter.Packet) (text string)
}

// Addresses from which the mesh's proxy dials what it lets in, and the loopback's.
var (
	source4 = netip.AddrFrom4([4]byte{127, 0, 0, 6})
	source6 = netip.MustParseAddr("::6")

	loopback4 = netip.AddrFrom4([4]byte{127, 0, 0, 1})
)

func source(a netip.Addr) netip.Addr {
	if a.Is4() {
		return source4
	}
	return source6
}

// istioOthers are the rules of a sidecar's init container or of istio-cni. The guest's interface is excluded from
// them, but in mode native, where it is rerouted (-k).
func (w *world) istioOthers() []other {
	m := w.Plan.Mesh
	redirect := func(p *interpreter.Packet, port uint16) string {
		p.DNAT(netip.AddrPortFrom(w.net.Here(p), port))
		return fmt.Sprintf("redirect to :%d", port)
	}
	fromVirtual := func(p *interpreter.Packet) bool { return slices.Contains(w.Plan.Interfaces, p.In) }
	served := func(p *interpreter.Packet) bool { return p.Proto == unix.IPPROTO_TCP && (!p.IPv6() || w.ipv6()) }

	letsIn := func(p *interpreter.Packet) bool {
		in := w.Plan.Inbound
		return !slices.Contains(m.OwnPorts, p.Dst.Port()) && (in.All || slices.Contains(in.IncludePorts, p.Dst.Port()))
	}
	inbound := other{"Istio", nft.Prerouting, true, -100, func(p *interpreter.Packet) string {
		switch {
		case !served(p), p.In == "lo":
		case fromVirtual(p) && w.Plan.Mode == plan.Native && w.included(p.Dst.Addr()):
			return redirect(p, m.OutboundPort)
		case fromVirtual(p), m.TProxyMark != 0, !letsIn(p):
		default:
			return redirect(p, m.InboundPort)
		}
		return ""
	}}
	byMesh := func(p *interpreter.Packet) bool {
		if m.TProxyMark != 0 {
			return p.Owner.GID == m.GID
		}
		return p.Owner.UID == m.UID || p.Owner.GID == m.GID
	}
	outbound := other{"Istio", nft.Output, true, -100, func(p *interpreter.Packet) string {
		self := p.Src.Addr() == source(p.Src.Addr()) && p.Out == "lo"
		switch {
		case m.DNS != nil && p.Dst.Port() == 53 && !byMesh(p) && (!p.IPv6() || w.ipv6()) && (m.DNS.All || slices.Contains(w.Observed.Nameservers, p.Dst.Addr())):
			p.DNAT(netip.AddrPortFrom(w.net.Here(p), m.DNS.Port))
			return fmt.Sprintf("DNS to :%d", m.DNS.Port)
		case !served(p), self, byMesh(p) && p.Out != "lo", p.Out == "lo" && !byMesh(p), p.Dst.Addr().IsLoopback():
			return ""
		case byMesh(p) && m.TProxyMark != 0 && p.Mark == m.TProxyMark:
			return ""
		case byMesh(p):
			return redirect(p, m.InboundPort)
		}
		return redirect(p, m.OutboundPort)
	}}
	if w.Plan.Mode == plan.Ambient {
		// What is the guest's is decided before.
		return []other{{"Istio", nft.Output, true, -100, func(p *interpreter.Packet) string {
			if p.Proto != unix.IPPROTO_TCP || p.Out == "lo" || p.Mark&rules.IstioMarkBits == rules.ZtunnelMark {
				return ""
			}
			return redirect(p, m.OutboundPort)
		}}}
	}
	all := []other{inbound, outbound}
	if mark := m.TProxyMark; mark != 0 {
		all = append(all, other{"Istio", nft.Prerouting, false, -150, func(p *interpreter.Packet) string {
			switch {
			case !served(p), fromVirtual(p), p.In == "lo":
				return ""
			case p.Mark == mark:
				p.Conn.Mark = mark
				return fmt.Sprintf("leaves mark %#x alone, and notes it on the connection", mark)
			case !letsIn(p):
				return ""
			case p.State != expr.CtStateBitNEW:
				p.Mark = mark
				return fmt.Sprintf("mark %#x: to the socket that knows the connection", mark)
			}
			p.Mark, p.Socket = mark, m.InboundPort
			return fmt.Sprintf("TPROXY to :%d, mark %#x", m.InboundPort, mark)
		}})
	}
	return all
}

// kubevirtOthers are the rules of virt-handler for the masquerade binding. Beside a sidecar they are those of
// KubeVirt's Istio mode, which leaves what comes in to the mesh, but for TCP port 22.
func (w *world) kubevirtOthers() []other {
	guest := func(p *interpreter.Packet) netip.Addr { return w.guest(p.Dst.Addr()) }
	listed := func(p *interpreter.Packet) bool {
		ports := w.Plan.Guest.TCP
		if p.Proto == unix.IPPROTO_UDP {
			ports = w.Plan.Guest.UDP
		}
		return w.Plan.Guest.AllPorts() || slices.ContainsFunc(ports, func(r plan.PortRange) bool { return r.Contains(p.Dst.Port()) })
	}
	to := func(p *interpreter.Packet) string {
		if !guest(p).IsValid() || !listed(p) {
			return ""
		}
		p.DNAT(netip.AddrPortFrom(guest(p), p.Dst.Port()))
		return "dnat to " + guest(p).String()
	}
	in := other{"KubeVirt", nft.Prerouting, true, -100, func(p *interpreter.Packet) string {
		if p.In != w.Plan.PodInterface || w.istioMode() && (p.Dst.Port() != 22 || p.Proto != unix.IPPROTO_TCP) {
			return ""
		}
		return to(p)
	}}
	out := other{"KubeVirt", nft.Output, true, -100, func(p *interpreter.Packet) string {
		dst := p.Dst.Addr()
		if dst == netip.IPv6Loopback() || dst == loopback4 || w.istioMode() && dst.Is4() && dst == w.pod(dst) {
			return to(p)
		}
		return ""
	}}
	post := other{"KubeVirt", nft.Postrouting, true, 100, func(p *interpreter.Packet) string {
		src := p.Src.Addr()
		switch {
		case src == w.guest(src):
			p.SNAT(w.net.Link(p.Out).Source(src))
			return "masquerade"
		case slices.Contains(w.Plan.Interfaces, p.Out) && listed(p) && (src == source4 && w.istioMode() || src.IsLoopback() && src != source4):
			p.SNAT(w.net.Link(p.Out).Source(src))
			return "snat to " + p.Src.Addr().String()
		}
		return ""
	}}
	return []other{in, out, post}
}

// included is what Istio's own redirect of an interface (-k) heeds of the plan: addresses, and no exclusions.
func (w *world) included(a netip.Addr) bool {
	o := w.Plan.Outbound
	return o.All || slices.ContainsFunc(o.IncludeCIDRs, func(p netip.Prefix) bool { return p.Contains(a) })
}

func (w *world) istioMode() bool { return w.Plan.Mode != plan.Ambient }
func (w *world) ipv6() bool      { return w.Observed.ServesIPv6(w.Plan.Mesh) }

// guest and pod are their addresses in the family of a, invalid if there is none.
func (w *world) guest(a netip.Addr) netip.Addr {
	if a.Is4() {
		return w.Plan.Guest.IPv4
	}
	return w.Plan.Guest.IPv6
}

func (w *world) pod(a netip.Addr) netip.Addr { return w.net.Links[0].Source(a) }

// process is who is behind a port of the pod that a packet was delivered to, and what it sends on. Nothing means
// that the way ends there.
func (w *world) process(port uint16, arrived interpreter.Packet) (who string, on *interpreter.Packet) {
	m, dst, src := w.Plan.Mesh, arrived.Conn.Dst, arrived.Conn.Src
	proxy, owner := w.proxy(), &interpreter.Owner{UID: m.UID, GID: m.GID}
	if m.TProxyMark != 0 {
		owner = &interpreter.Owner{UID: 0, GID: m.GID}
	}
	var mark uint32
	if w.Plan.Mode == plan.Ambient {
		owner, mark = &interpreter.Owner{}, rules.ZtunnelMark
	}
	dial := func(o *interpreter.Owner, mark uint32, from netip.Addr, to netip.AddrPort) *interpreter.Packet {
		p := interpreter.New("", arrived.Proto, netip.AddrPortFrom(from, EphemeralPort), to)
		p.Owner, p.Mark = o, mark
		return &p
	}
	switch x := w.Plan.Proxy; {
	case port == m.OutboundPort:
		return proxy, dial(owner, mark, w.pod(dst.Addr()), dst)
	case port == m.InboundPort && m.TProxyMark != 0:
		return proxy, dial(owner, m.TProxyMark, src.Addr(), dst)
	case w.Plan.Mode == plan.Ambient && port == m.InboundPort:
		return proxy, dial(owner, mark, src.Addr(), dst)
	case w.Plan.Mode == plan.Ambient && slices.Contains(m.OwnPorts, port) && w.tunnelled != 0:
		return proxy, dial(owner, mark, src.Addr(), netip.AddrPortFrom(dst.Addr(), w.tunnelled))
	case port == m.InboundPort && m.DialsLoopback && dst.Addr().Is4():
		return proxy, dial(owner, 0, loopback4, netip.AddrPortFrom(loopback4, dst.Port()))
	case port == m.InboundPort:
		return proxy, dial(owner, 0, source(dst.Addr()), dst)
	case x != nil && port == x.OutboundPort:
		return relay, dial(&interpreter.Owner{UID: x.UID, GID: x.UID}, 0, w.pod(dst.Addr()), dst)
	case x != nil && port == x.InboundPort:
		guest := w.guest(dst.Addr())
		return relay, dial(&interpreter.Owner{UID: x.UID, GID: x.UID}, 0, w.net.Link(w.net.To(guest)).Source(guest), netip.AddrPortFrom(guest, dst.Port()))
	case x != nil && x.DNSPort != 0 && arrived.Proto == unix.IPPROTO_UDP && port-x.DNSPort < plan.MaxNameservers:
		server := w.Observed.Nameservers[port-x.DNSPort]
		return relay, dial(&interpreter.Owner{UID: x.UID, GID: x.UID}, 0, w.pod(server), netip.AddrPortFrom(server, 53))
	case m.DNS != nil && port == m.DNS.Port:
		return "the mesh's DNS proxy", nil
	case slices.Contains(m.OwnPorts, port):
		return proxy, nil
	case x != nil && port == x.StatusPort:
		return relay, nil
	case port != 0 && port == w.Plan.WatchPort:
		return "meshvirt-rules", nil
	}
	return "", nil
}

const relay = "meshvirt-proxy"

func (w *world) proxy() string {
	if w.Plan.Mode == plan.Ambient {
		return "ztunnel"
	}
	return "Envoy"
}

package drawing

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/meshvirt/meshvirt/pkg/interpreter"
	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/walk"
)

// fromGuest and fromPeer are samples of what the two send. A packet to an invalid address is no sample.
func (d *drawing) fromGuest(proto uint8, to netip.AddrPort) sample {
	src := d.Guest.IPv4
	if to.Addr().Is6() {
		src = d.Guest.IPv6
	}
	return sample{packet: interpreter.New(d.Interfaces[0], proto, netip.AddrPortFrom(src, walk.EphemeralPort), to)}
}

func (d *drawing) fromPeer(v4 bool, proto uint8, port uint16) sample {
	return sample{packet: interpreter.New(d.PodInterface, proto, netip.AddrPortFrom(d.peer(v4), walk.EphemeralPort), netip.AddrPortFrom(d.pod(v4), port))}
}

func (d *drawing) pod(v4 bool) netip.Addr {
	return first(d.IPs, v4)
}

func (d *drawing) gateway(v4 bool) netip.Addr {
	return first(d.Gateways, v4)
}

// first is the first address of a family, invalid if there is none.
func first(all []netip.Prefix, v4 bool) netip.Addr {
	for _, p := range all {
		if p.Addr().Is4() == v4 {
			return p.Addr()
		}
	}
	return netip.Addr{}
}

// away reports whether a is not in the guest's own network, nor the pod's own.
func (d *drawing) away(a netip.Addr) bool {
	return !slices.ContainsFunc(d.Gateways, func(p netip.Prefix) bool { return p.Contains(a) }) &&
		!slices.ContainsFunc(d.IPs, func(p netip.Prefix) bool { return p.Addr() == a })
}

// peer is an example of one.
func (d *drawing) peer(v4 bool) netip.Addr {
	i := slices.IndexFunc(examplePeers, func(a netip.Addr) bool { return a.Is4() == v4 && d.away(a) })
	d.names[examplePeers[i]] = "peer"
	return examplePeers[i]
}

// most bounds what is looked at and shown of long lists: a plan may have thousands of CIDRs, and the rules have them all.
const most = 10

// destination is an example of where the guest dials, in the given class; invalid if none is found.
func (d *drawing) destination(v4, excluded, included bool) netip.AddrPort {
	addrs := slices.Clone(examplePeers)
	for _, p := range slices.Concat(head(d.Outbound.IncludeCIDRs), head(d.Outbound.ExcludeCIDRs)) {
		addrs = append(addrs, p.Masked().Addr().Next(), p.Masked().Addr())
	}
	ports := slices.Concat([]uint16{80, 443, 8080}, head(d.Outbound.IncludePorts), head(d.Outbound.ExcludePorts))
	in := func(all []netip.Prefix, a netip.Addr) bool {
		return slices.ContainsFunc(all, func(p netip.Prefix) bool { return p.Contains(a) })
	}
	o := d.Outbound
	for _, a := range addrs {
		for _, p := range ports {
			ex := in(o.ExcludeCIDRs, a) || slices.Contains(o.ExcludePorts, p)
			inc := o.All || in(o.IncludeCIDRs, a) || slices.Contains(o.IncludePorts, p)
			if a.Is4() == v4 && d.away(a) && ex == excluded && (ex || inc == included) && p != 53 {
				d.names[a] = "peer"
				return netip.AddrPortFrom(a, p)
			}
		}
	}
	return netip.AddrPort{}
}

func (d *drawing) egress() {
	note := " that is not excluded"
	if d.Mode == plan.Native {
		note, d.Outbound.ExcludeCIDRs, d.Outbound.ExcludePorts, d.Outbound.IncludePorts = "; outbound exclusions do not hold for it", nil, nil, nil
	}
	out := d.Outbound
	to := func(excluded, included bool) func(bool) sample {
		return func(v4 bool) sample {
			return d.fromGuest(unix.IPPROTO_TCP, d.destination(v4, excluded, included))
		}
	}
	switch {
	case out.All:
		d.flow("egress", "TCP of the guest to any address and port"+note, to(false, true))
	case len(out.IncludeCIDRs)+len(out.IncludePorts) > 0:
		d.flow("egress", "of the guest, "+choice(out.IncludeCIDRs, out.IncludePorts), to(false, true))
	default:
		d.text("egress", "no TCP of the guest goes into the mesh: nothing is included")
	}
	if len(out.ExcludeCIDRs)+len(out.ExcludePorts) > 0 {
		d.flow("excluded", "of the guest, "+choice(out.ExcludeCIDRs, out.ExcludePorts), to(true, false))
	}
	if !out.All {
		d.flow("else", "TCP of the guest to anything else", to(false, false))
	}
}

func (d *drawing) ingress() {
	in, own := d.Inbound, d.ownPorts()
	excluded := slices.DeleteFunc(slices.Clone(in.ExcludePorts), func(p uint16) bool { return slices.Contains(own, p) })
	// port is an example of the class, 0 if there is none.
	port := func(included bool) uint16 {
		candidates := slices.Concat(head(in.IncludePorts), []uint16{80, 443, 8080})
		for _, r := range head(d.Guest.TCP) {
			candidates = append(candidates, r.First)
		}
		for _, p := range candidates {
			if !slices.Contains(own, p) && !slices.Contains(in.ExcludePorts, p) && d.guestHas(p) && (in.All || slices.Contains(in.IncludePorts, p)) == included {
				return p
			}
		}
		return 0
	}
	to := func(p uint16) func(bool) sample {
		return func(v4 bool) sample {
			if p == 0 {
				return sample{}
			}
			return d.fromPeer(v4, unix.IPPROTO_TCP, p)
		}
	}
	if d.Mode == plan.Native {
		d.flow("ingress", "TCP to the pod, as Istio's own rules and KubeVirt's say", to(port(true)))
		if d.guestHas(22) {
			d.flow("port 22", "which KubeVirt forwards itself", to(22))
		}
		return
	}
	switch {
	case in.All:
		d.flow("ingress", "TCP to any port of the pod that is not named below; the guest has "+d.guestTCP(), to(port(true)))
	case len(in.IncludePorts) > 0:
		d.flow("ingress", "TCP to the pod, port "+list(in.IncludePorts), to(port(true)))
	default:
		d.text("ingress", "no TCP port of the pod is served by the mesh: none is included")
	}
	if d.Mode == plan.Ambient && len(own) > 0 {
		d.flow("tunnel", "from other members of the mesh, by HBONE", func(v4 bool) sample {
			s := d.fromPeer(v4, unix.IPPROTO_TCP, own[0])
			s.tunnelled = max(port(true), port(false))
			return s
		})
		d.flow("probe", "of the kubelet, which comes from this address by istio-cni's doing", func(v4 bool) sample {
			if !v4 {
				return sample{}
			}
			s := d.fromPeer(v4, unix.IPPROTO_TCP, max(port(true), port(false)))
			s.packet.Src = netip.AddrPortFrom(kubelet, walk.EphemeralPort)
			return s
		})
	}
	if len(excluded) > 0 {
		d.flow("excluded", "TCP to the pod, port "+list(excluded), to(excluded[0]))
	}
	if !in.All {
		d.flow("else", "TCP to any other port of the pod that the guest has: "+d.guestTCP(), to(port(false)))
	}
	if len(own) > 0 {
		what := "TCP to the pod, port " + list(own)
		if d.Mode == plan.Ambient {
			what += ", but for a tunnel: served in the pod"
		}
		d.flow("own", what, to(own[len(own)-1]))
	}
}

func (d *drawing) udp() {
	const example = 9999
	switch {
	case d.Guest.AllPorts():
		d.flow("UDP in", "to any port of the pod", func(v4 bool) sample { return d.fromPeer(v4, unix.IPPROTO_UDP, example) })
	case len(d.Guest.UDP) == 0:
		d.text("UDP in", "the VMI lists no UDP port for the guest")
	default:
		d.flow("UDP in", "to the pod, port "+list(d.Guest.UDP), func(v4 bool) sample {
			return d.fromPeer(v4, unix.IPPROTO_UDP, d.Guest.UDP[0].First)
		})
	}
	d.flow("UDP out", "of the guest to any port", func(v4 bool) sample {
		return d.fromGuest(unix.IPPROTO_UDP, netip.AddrPortFrom(d.peer(v4), example))
	})
}

func (d *drawing) dns() {
	if d.Mesh.DNS == nil {
		d.text("DNS", "as other UDP and TCP: the mesh does not capture the pod's queries")
		return
	}
	server := func(v4 bool) netip.AddrPort {
		for _, a := range d.Observed.Nameservers {
			if a.Is4() == v4 {
				return netip.AddrPortFrom(a, 53)
			}
		}
		if !d.Mesh.DNS.All {
			return netip.AddrPort{}
		}
		return netip.AddrPortFrom(d.peer(v4), 53)
	}
	to := "the pod's nameservers"
	if d.Mesh.DNS.All {
		to = "any server"
	}
	d.flow("DNS", "queries of the guest to "+to, func(v4 bool) sample { return d.fromGuest(unix.IPPROTO_UDP, server(v4)) })
	d.flow("DNS", "the same over TCP", func(v4 bool) sample { return d.fromGuest(unix.IPPROTO_TCP, server(v4)) })
}

// guard is what the guest may not.
func (d *drawing) guard() {
	d.flow("guard", "the guest to the pod's loopback", func(v4 bool) sample {
		return d.fromGuest(unix.IPPROTO_TCP, netip.AddrPortFrom(map[bool]netip.Addr{true: netip.AddrFrom4([4]byte{127, 0, 0, 1}), false: netip.IPv6Loopback()}[v4], 15000))
	})
	d.flow("guard", "the guest to its gateway, but DHCP and ICMP", func(v4 bool) sample {
		return d.fromGuest(unix.IPPROTO_TCP, netip.AddrPortFrom(d.gateway(v4), 22))
	})
	d.flow("guard", "the guest in the name of somebody else", func(v4 bool) sample {
		s := d.fromGuest(unix.IPPROTO_UDP, netip.AddrPortFrom(d.peer(v4), 9999))
		s.packet.Src = netip.AddrPortFrom(d.pod(v4), walk.EphemeralPort)
		return s
	})
}

// ownPorts are those that the mesh and our relay serve in the pod.
func (d *drawing) ownPorts() []uint16 {
	own := slices.Clone(d.Mesh.OwnPorts)
	if d.Proxy != nil {
		own = append(own, d.Proxy.StatusPort)
	}
	if d.WatchPort != 0 {
		own = append(own, d.WatchPort)
	}
	return own
}

// guestPorts are the ports on which the guest is reached, if its interface lists any. The user's lists of ports
// count as well.
func (d *drawing) guestPorts() []plan.PortRange {
	all := slices.Clone(d.Guest.TCP)
	for _, p := range slices.Concat(d.Inbound.IncludePorts, d.Inbound.ExcludePorts) {
		if !slices.ContainsFunc(all, func(r plan.PortRange) bool { return r.Contains(p) }) {
			all = append(all, plan.Port(p))
		}
	}
	return slices.DeleteFunc(all, func(r plan.PortRange) bool { return r.First == r.Last && slices.Contains(d.ownPorts(), r.First) })
}

func (d *drawing) guestHas(port uint16) bool {
	return d.Guest.AllPorts() || slices.ContainsFunc(d.guestPorts(), func(r plan.PortRange) bool { return r.Contains(port) })
}

func (d *drawing) guestTCP() string {
	ports := d.guestPorts()
	switch {
	case d.Guest.AllPorts():
		return "all"
	case len(ports) == 0:
		return "none"
	}
	return list(ports)
}

// choice is addresses or ports.
func choice(cidrs []netip.Prefix, ports []uint16) string {
	var all []string
	if len(cidrs) > 0 {
		all = append(all, "TCP to "+list(cidrs))
	}
	if len(ports) > 0 {
		all = append(all, "TCP port "+list(ports))
	}
	return strings.Join(all, "; ")
}

func head[T any](all []T) []T { return all[:min(most, len(all))] }

// list keeps long lists short.
func list[T any](all []T) string {
	var text []string
	for i, v := range all {
		if i == most && len(all) > most+1 {
			text = append(text, fmt.Sprintf("and %d more", len(all)-most))
			break
		}
		text = append(text, fmt.Sprint(v))
	}
	return strings.Join(text, ", ")
}

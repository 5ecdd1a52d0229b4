package main

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/test/e2e/netlab"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/agent"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/istio"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/sidecar"
)

// unlistedPort is one that no recorded VMI lists.
const unlistedPort = 8443

// migrationPorts are virt-launcher's own, on the pod's loopback, for VMIs of old.
var migrationPorts = []uint16{49152, 49153}

const (
	bulkBytes = 4 << 20
	// idle is longer than any timer of the mesh's stand-ins and the relay's that could be mistaken for one
	// of established connections (dial, handshake).
	idle = 3 * time.Second
)

// A flow is one of netlab's under a name that is the same for both families.
type flow struct {
	name   string
	family string // ipv4 or ipv6
	netlab.Flow
}

// hosts are the lab's addresses in one family.
type hosts struct {
	family                                                              string
	pod, peer, service, outside, dns, bridge, guest, probe, node, spoof netip.Addr
}

var families = []hosts{
	{"ipv4", netlab.PodIP4, netlab.PeerIP4, netlab.ServiceIP4, netlab.OutsideIP4, netlab.DNSIP4, netlab.BridgeIP4, netlab.GuestIP4, netlab.ProbeIP4, netlab.NodeIP4, netip.MustParseAddr("10.0.2.77")},
	{"ipv6", netlab.PodIP6, netlab.PeerIP6, netlab.ServiceIP6, netlab.OutsideIP6, netlab.DNSIP6, netlab.BridgeIP6, netlab.GuestIP6, netlab.ProbeIP6, netlab.NodeIP6, netip.Addr{}},
}

// families are those of the pod.
func (s setup) families() []hosts {
	switch {
	case s.ipv6Only:
		return families[1:]
	case s.dual:
		return families
	}
	return families[:1]
}

// flows lists what is sent in a pod. What is excluded and included depends on what the mesh and the user say.
func (s setup) flows() []flow {
	var all []flow
	for _, h := range s.families() {
		add := func(name string, f netlab.Flow) {
			f.Name = name
			all = append(all, flow{name, h.family, f})
		}
		out := func(name string, to netip.Addr, port uint16, kind string, more ...func(*netlab.Flow)) {
			f := netlab.Flow{From: netlab.Guest, Network: "tcp", To: netip.AddrPortFrom(to, port), Kind: kind}
			for _, m := range more {
				m(&f)
			}
			add(name, f)
		}
		in := func(name string, port uint16, kind string, more ...func(*netlab.Flow)) {
			f := netlab.Flow{From: netlab.Peer, Network: "tcp", To: netip.AddrPortFrom(h.pod, port), Kind: kind}
			for _, m := range more {
				m(&f)
			}
			add(name, f)
		}
		if s.large {
			if h.family == "ipv4" {
				out("egress-gigabyte", h.peer, netlab.AppPort, agent.Bulk, gigabyte)
				in("ingress-gigabyte", s.appPort(), agent.Bulk, gigabyte)
			}
			continue
		}
		s.egress(h, out)
		s.ingress(in)
		s.others(h, add)
		if s.mesh == ambientMesh {
			s.tunnels(in)
		}
		if s.binding == "masquerade" {
			s.attacks(h, add)
		}
	}
	if s.vmi.Migration && !s.ipv6Only {
		for _, port := range migrationPorts {
			name := fmt.Sprintf("migration-port-%d", port)
			to := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port)
			all = append(all, flow{name, "ipv4", netlab.Flow{Name: name, From: netlab.Pod, Network: "tcp", To: to, Kind: agent.Echo}})
		}
	}
	if s.guestIsProcess() {
		all = ofProcess(all)
	}
	return all
}

type adder func(name string, port uint16, kind string, more ...func(*netlab.Flow))

func half(f *netlab.Flow)   { f.Half = true }
func silent(f *netlab.Flow) { f.Idle = idle }
func bulk(f *netlab.Flow)   { f.Bytes = bulkBytes }

func gigabyte(f *netlab.Flow) { f.Bytes = 1 << 30 }

func tunnel(f *netlab.Flow) { f.Tunnel = true }

func fromNode(f *netlab.Flow) { f.From = netlab.Node }

func (s setup) egress(h hosts, out func(string, netip.Addr, uint16, string, ...func(*netlab.Flow))) {
	out("egress-pod", h.peer, netlab.AppPort, agent.Echo)
	out("egress-service", h.service, netlab.HTTPPort, agent.HTTP)
	out("egress-outside", h.outside, netlab.AppPort, agent.Echo)
	out("egress-half-close", h.peer, netlab.AppPort, agent.Echo, half)
	out("egress-banner", h.peer, netlab.SSHPort, agent.Banner)
	if s.whole {
		out("egress-bulk", h.peer, netlab.AppPort, agent.Bulk, bulk)
		out("egress-idle", h.peer, netlab.AppPort, agent.Echo, silent)
	}
	// By Istio's word, by the user's, and what is not excluded or included at all is above.
	for _, c := range []struct {
		name  string
		cidrs []netip.Prefix
		ports []uint16
	}{
		{"egress-excluded", s.own.cidrs, s.own.out},
		{"egress-excluded-by-istio", s.told.ExcludeCIDRs, s.told.ExcludeOutPorts},
		{"egress-included", s.told.IncludeCIDRs, s.told.IncludeOutPorts},
	} {
		if a, ok := within(c.cidrs, h.family); ok {
			out(c.name+"-cidr", a, netlab.AppPort, agent.Echo)
		}
		if len(c.ports) > 0 {
			out(c.name+"-port", h.peer, c.ports[0], agent.Echo)
		}
	}
}

// within is an address in the first CIDR of a family.
func within(cidrs []netip.Prefix, family string) (netip.Addr, bool) {
	for _, c := range cidrs {
		if c.Addr().Is6() != (family == "ipv6") {
			continue
		}
		if c.IsSingleIP() {
			return c.Addr(), true
		}
		return c.Masked().Addr().Next(), true
	}
	return netip.Addr{}, false
}

func (s setup) ingress(in adder) {
	app := s.appPort()
	in("ingress-listed", app, agent.Echo)
	in("ingress-half-close", app, agent.Echo, half)
	in("ingress-ssh", netlab.SSHPort, agent.Banner)
	if s.whole {
		in("ingress-bulk", app, agent.Bulk, bulk)
		in("ingress-idle", app, agent.Echo, silent)
	}
	if s.listsPorts() {
		in("ingress-unlisted", unlistedPort, agent.Echo)
	}
	if len(s.own.in) > 0 {
		in("ingress-excluded-port", s.own.in[0], agent.Echo)
	}
	if p := s.excludedByIstio(); p != 0 {
		in("ingress-excluded-by-istio-port", p, agent.Echo)
	}
	if !s.told.InboundAll && s.mesh == sidecarMesh {
		in("ingress-not-included-port", unlistedPort, agent.Echo)
	}
	in("probe", app, agent.HTTP, fromNode)
	if s.mesh != sidecarMesh {
		return
	}
	in("probe-rewritten", sidecar.Agent, agent.HTTP, fromNode, func(f *netlab.Flow) { f.Path = sidecar.AppHealth(app) })
	in("probe-of-the-sidecar", sidecar.Health, agent.HTTP, fromNode)
	in("metrics-of-the-agent", sidecar.Agent, agent.HTTP)
	in("metrics-of-envoy", sidecar.Prometheus, agent.HTTP)
}

// excludedByIstio is an inbound port that istio-init was told to leave alone, and that is not the mesh's
// own nor has a flow; zero if there is none.
func (s setup) excludedByIstio() uint16 {
	for _, p := range s.told.ExcludeInPorts {
		if !slices.Contains(meshPorts, p) && p != netlab.SSHPort {
			return p
		}
	}
	return 0
}

// meshPorts are those on which the sidecar itself serves.
var meshPorts = []uint16{sidecar.HBONE, sidecar.Agent, sidecar.Health, sidecar.Prometheus}

func (s setup) others(h hosts, add func(string, netlab.Flow)) {
	to := netip.AddrPortFrom
	add("udp-out", netlab.Flow{From: netlab.Guest, Network: "udp", To: to(h.peer, netlab.UDPPort)})
	if p := s.udpPort(); p != 0 {
		add("udp-in", netlab.Flow{From: netlab.Peer, Network: "udp", To: to(h.pod, p)})
	}
	if s.listsPorts() {
		add("udp-in-unlisted", netlab.Flow{From: netlab.Peer, Network: "udp", To: to(h.pod, netlab.UDPPort)})
	}
	add("dns-udp", netlab.Flow{From: netlab.Guest, Network: "dns-udp", To: to(h.dns, 53)})
	add("dns-tcp", netlab.Flow{From: netlab.Guest, Network: "dns-tcp", To: to(h.dns, 53)})
	if s.binding == "masquerade" { // a process without privileges cannot send ICMP; passt has a socket for it
		add("icmp", netlab.Flow{From: netlab.Guest, Network: "icmp", To: to(h.peer, 0)})
		add("pod-egress", netlab.Flow{From: netlab.Pod, Network: "tcp", To: to(h.peer, netlab.AppPort), Kind: agent.Echo})
		add("pod-to-guest", netlab.Flow{From: netlab.Pod, Network: "tcp", To: to(h.pod, s.appPort()), Kind: agent.Echo})
		add("hairpin", netlab.Flow{From: netlab.Guest, Network: "tcp", To: to(h.pod, s.appPort()), Kind: agent.Echo})
	}
}

// udpPort is a port of UDP that is the guest's: any, or the first that is listed; zero if none is.
func (s setup) udpPort() uint16 {
	for _, p := range s.vmi.Ports {
		if p.Protocol == "UDP" {
			return p.Port
		}
	}
	if s.lists("UDP", netlab.UDPPort) {
		return netlab.UDPPort
	}
	return 0
}

func (s setup) tunnels(in adder) {
	app := s.appPort()
	in("tunnel", app, agent.Echo, tunnel)
	in("tunnel-ssh", netlab.SSHPort, agent.Banner, tunnel)
	in("tunnel-port", sidecar.HBONE, agent.HTTP)
	in("probe-by-istio-cni", app, agent.HTTP, fromNode, func(f *netlab.Flow) {
		f.Src = netip.AddrPortFrom(netlab.ProbeIP4, 0)
		if f.IPv6() {
			f.Src = netip.AddrPortFrom(netlab.ProbeIP6, 0)
		}
	})
}

func (s setup) attacks(h hosts, add func(string, netlab.Flow)) {
	to := netip.AddrPortFrom
	add("attack-gateway", netlab.Flow{From: netlab.Guest, Network: "tcp", To: to(h.bridge, sidecar.Health), Kind: agent.HTTP})
	if h.family == "ipv4" {
		add("attack-loopback", netlab.Flow{From: netlab.Guest, Network: "raw-tcp", Src: to(netlab.GuestIP4, 40001), To: to(netip.MustParseAddr("127.0.0.1"), sidecar.Admin)})
		add("attack-spoof", netlab.Flow{From: netlab.Guest, Network: "raw-udp", Src: to(h.spoof, 40002), To: to(h.peer, netlab.UDPPort)})
	}
}

func (s setup) guestIsProcess() bool {
	return slices.ContainsFunc(bindings, func(b binding) bool { return b.name == s.binding && b.guest == processGuest })
}

// ofProcess has a process of the pod in the guest's place.
func ofProcess(flows []flow) []flow {
	for i := range flows {
		if flows[i].From == netlab.Guest {
			flows[i].From = netlab.Pod
		}
	}
	return flows
}

// sees reports whether the mesh's proxy takes connections of the flow's family.
func (s setup) served(f flow) bool {
	return s.mesh == ambientMesh || f.family == "ipv4" || s.told.DualStack
}

// excluded and included say what becomes of a connection out of the pod by Istio's word, first of the
// list alone, then of both lists.
func excluded(told istio.Settings, to netip.AddrPort) bool {
	return slices.Contains(told.ExcludeOutPorts, to.Port()) || contains(told.ExcludeCIDRs, to.Addr())
}

func included(told istio.Settings, to netip.AddrPort) bool {
	return told.OutboundAll || slices.Contains(told.IncludeOutPorts, to.Port()) || contains(told.IncludeCIDRs, to.Addr())
}

func contains(cidrs []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(cidrs, func(c netip.Prefix) bool { return c.Contains(a) })
}

// A cell is one flow in one pod of one mode.
type cell struct {
	setup
	flow flow
	mode plan.Mode
}

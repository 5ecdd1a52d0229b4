package netlab

import (
	"net/netip"
	"slices"
	"time"

	"github.com/meshvirt/meshvirt/test/e2e/netlab/agent"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/sidecar"
)

// Host names an agent of the lab.
type Host string

// The hosts. Pod is a process of virt-launcher's in the pod beside the guest.
const (
	Node  Host = "node"
	Peer  Host = "peer"
	Pod   Host = "pod"
	Guest Host = "guest"
)

// Flow is one attempt to talk.
type Flow struct {
	Name string
	From Host
	// Network is tcp, udp, icmp, dns-udp, dns-tcp (a question to the DNS server To), raw-tcp (a SYN
	// sent straight to the gateway's hardware address) or raw-udp (likewise; it succeeds if the peer
	// has seen the datagram).
	Network string
	To      netip.AddrPort
	Kind    string         // for tcp: agent.Echo, agent.Banner or agent.HTTP
	Half    bool           // for agent.Echo: the client ends its direction before the server answers
	Src     netip.AddrPort // for raw-tcp and raw-udp; for tcp its address, if valid, is dialled from
	Tunnel  bool           // for tcp: through the ambient mesh's tunnel to To's host
	Path    string         // for agent.HTTP; empty means /
	Bytes   int            // of the payload, for agent.Echo and agent.Bulk; zero means some packets
	Idle    time.Duration  // for agent.Echo: silence in the middle
	// Timeout bounds the attempt, if it is shorter than the lab's. Zero means the lab's.
	Timeout time.Duration
}

// attackTimeout is short: that no answer comes is the good outcome, and nothing has to be resolved.
const attackTimeout = 700 * time.Millisecond

// IPv6 reports whether the flow needs a pod with IPv6.
func (f Flow) IPv6() bool { return f.To.Addr().Is6() }

// Flows are what a pod with a virtual machine in a mesh should manage, and, last, what it should not.
var Flows = []Flow{
	{Name: "egress-tcp4", From: Guest, Network: "tcp", To: at(PeerIP4, AppPort), Kind: agent.Echo},
	{Name: "egress-tcp6", From: Guest, Network: "tcp", To: at(PeerIP6, AppPort), Kind: agent.Echo},
	{Name: "egress-half4", From: Guest, Network: "tcp", To: at(PeerIP4, AppPort), Kind: agent.Echo, Half: true},
	{Name: "egress-banner4", From: Guest, Network: "tcp", To: at(PeerIP4, SSHPort), Kind: agent.Banner},
	{Name: "egress-service4", From: Guest, Network: "tcp", To: at(ServiceIP4, HTTPPort), Kind: agent.HTTP},
	{Name: "egress-service6", From: Guest, Network: "tcp", To: at(ServiceIP6, HTTPPort), Kind: agent.HTTP},
	{Name: "egress-excluded-cidr", From: Guest, Network: "tcp", To: at(ExcludedIP4, AppPort), Kind: agent.Echo},
	{Name: "egress-excluded-port", From: Guest, Network: "tcp", To: at(PeerIP4, ExcludedPort), Kind: agent.Echo},

	{Name: "ingress-tcp4", From: Peer, Network: "tcp", To: at(PodIP4, HTTPPort), Kind: agent.Echo},
	{Name: "ingress-tcp6", From: Peer, Network: "tcp", To: at(PodIP6, HTTPPort), Kind: agent.Echo},
	{Name: "ingress-half4", From: Peer, Network: "tcp", To: at(PodIP4, HTTPPort), Kind: agent.Echo, Half: true},
	{Name: "ingress-ssh4", From: Peer, Network: "tcp", To: at(PodIP4, SSHPort), Kind: agent.Banner},
	{Name: "ingress-ssh6", From: Peer, Network: "tcp", To: at(PodIP6, SSHPort), Kind: agent.Banner},
	{Name: "probe-guest", From: Node, Network: "tcp", To: at(PodIP4, HTTPPort), Kind: agent.HTTP},
	{Name: "probe-sidecar", From: Node, Network: "tcp", To: at(PodIP4, sidecar.Health), Kind: agent.HTTP},

	{Name: "udp-out4", From: Guest, Network: "udp", To: at(PeerIP4, UDPPort)},
	{Name: "udp-out6", From: Guest, Network: "udp", To: at(PeerIP6, UDPPort)},
	{Name: "udp-in4", From: Peer, Network: "udp", To: at(PodIP4, UDPPort)},
	{Name: "udp-in6", From: Peer, Network: "udp", To: at(PodIP6, UDPPort)},
	{Name: "dns-udp", From: Guest, Network: "dns-udp", To: at(DNSIP4, 53)},
	{Name: "dns-tcp", From: Guest, Network: "dns-tcp", To: at(DNSIP4, 53)},
	{Name: "icmp4", From: Guest, Network: "icmp", To: at(PeerIP4, 0)},
	{Name: "icmp6", From: Guest, Network: "icmp", To: at(PeerIP6, 0)},

	{Name: "pod-egress", From: Pod, Network: "tcp", To: at(PeerIP4, AppPort), Kind: agent.Echo},
	{Name: "pod-self", From: Pod, Network: "tcp", To: at(PodIP4, HTTPPort), Kind: agent.Echo},
	{Name: "hairpin", From: Guest, Network: "tcp", To: at(PodIP4, HTTPPort), Kind: agent.Echo},

	{Name: "attack-loopback", From: Guest, Network: "raw-tcp", Src: at(GuestIP4, 40001), To: at(netip.MustParseAddr("127.0.0.1"), sidecar.Admin), Timeout: attackTimeout},
	{Name: "attack-gateway", From: Guest, Network: "tcp", To: at(BridgeIP4, sidecar.Health), Kind: agent.HTTP, Timeout: attackTimeout},
	{Name: "attack-spoof", From: Guest, Network: "raw-udp", Src: at(netip.MustParseAddr("10.0.2.77"), 40002), To: at(PeerIP4, UDPPort), Timeout: attackTimeout},
}

// AmbientFlows are what an ambient mesh has besides: tunnels, and probes of the kubelet's from an address
// of their own.
var AmbientFlows = []Flow{
	{Name: "tunnel-tcp4", From: Peer, Network: "tcp", To: at(PodIP4, HTTPPort), Kind: agent.Echo, Tunnel: true},
	{Name: "tunnel-tcp6", From: Peer, Network: "tcp", To: at(PodIP6, HTTPPort), Kind: agent.Echo, Tunnel: true},
	{Name: "tunnel-banner4", From: Peer, Network: "tcp", To: at(PodIP4, SSHPort), Kind: agent.Banner, Tunnel: true},
	{Name: "tunnel-port", From: Peer, Network: "tcp", To: at(PodIP4, sidecar.HBONE), Kind: agent.HTTP},
	{Name: "probe-ambient4", From: Node, Network: "tcp", Src: at(ProbeIP4, 0), To: at(PodIP4, HTTPPort), Kind: agent.HTTP},
	{Name: "probe-ambient6", From: Node, Network: "tcp", Src: at(ProbeIP6, 0), To: at(PodIP6, HTTPPort), Kind: agent.HTTP},
	{Name: "ingress-other4", From: Peer, Network: "tcp", To: at(PodIP4, AppPort), Kind: agent.Echo}, // not in KubeVirt's recorded lists of ports
	{Name: "dns-udp6", From: Guest, Network: "dns-udp", To: at(DNSIP6, 53)},
}

// ProcessFlows are attempts of a guest whose network is a process's on the pod's loopback: its gateway's address
// is the host's own to passt and to slirp.
var ProcessFlows = []Flow{
	{Name: "attack-passt-gateway", From: Guest, Network: "tcp", To: at(NodeIP4, sidecar.Admin), Kind: agent.HTTP},
	{Name: "attack-slirp-gateway", From: Guest, Network: "tcp", To: at(SlirpGateway, sidecar.Admin), Kind: agent.HTTP},
}

func at(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }

// FlowNamed gives the flow of Flows, AmbientFlows or ProcessFlows with that name. It panics if there is none: the name
// is a mistake in the program.
func FlowNamed(name string) Flow {
	all := slices.Concat(Flows, AmbientFlows, ProcessFlows)
	i := slices.IndexFunc(all, func(f Flow) bool { return f.Name == name })
	if i < 0 {
		panic("no flow " + name)
	}
	return all[i]
}

// tunnel is where the flow's tunnel ends, if it has one.
func (f Flow) tunnel() netip.AddrPort {
	if !f.Tunnel {
		return netip.AddrPort{}
	}
	return at(f.To.Addr(), sidecar.HBONE)
}

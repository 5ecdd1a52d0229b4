package netlab

import (
	"net/netip"
	"slices"

	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/agent"
)

// A kind of attempt is one row of docs/isolation.md: what a guest with root may send, why that matters,
// and what becomes of it, in every mode.
type kind struct {
	what, why string
	// becomes of it: lost, or one of those that must pass.
	becomes  fate
	attempts []attempt
}

// A fate is what the witness sees of an attempt.
type fate string

const (
	lost     fate = "dropped" // nothing in the pod sees it, and nothing leaves the pod
	leaves   fate = "leaves the pod, from the pod's address"
	enters   fate = "goes into the mesh, or to the relay"
	answered fate = "the pod's kernel answers or ignores it"
	served   fate = "KubeVirt's DHCP server answers it"
)

// seen is how the witness tells of a fate.
func (f fate) seen(v6 bool) string {
	switch {
	case f == lost:
		return ""
	case f == leaves && v6:
		return "out " + PodIP6.String()
	case f == leaves:
		return "out " + PodIP4.String()
	}
	return "pod"
}

// An attempt is one packet, or a few that belong together.
type attempt struct {
	name string
	v6   bool
	make func(env) []agent.Frame
	// vain says why the attempt leads nowhere even without the guard, so that a lab cannot show what the
	// guard does to it. Empty means that it does lead somewhere.
	vain string
	only []plan.Mode // nil means all
}

// env is what an attempt is made of.
type env struct {
	tag  string
	port uint16 // of the guest's, not used by others
	// asks are ports from which a process of the pod asks the peer over UDP.
	asks4, asks6 uint16
}

// Why an attempt is in vain.
const (
	martian   = "the kernel takes no such source"
	routed    = "the kernel follows no source route"
	overlap   = "the kernel drops overlapping fragments"
	otherHost = "the kernel has no such VLAN"
	noGroup   = "nobody is at such an address"
	noForward = "the kernel forwards no such source"

	outsideLoopback = "the kernel takes ::1 from nowhere but its loopback device"
	noRedirect      = "the kernel redirects nothing that is for ::6 (what is excluded from redirection is in pkg/rules, TestGuardPaths)"
	shortHeader     = "the kernel wants the whole header in the first fragment"
)

// ports are those that somebody in a pod of any mode listens on.
var (
	istioPorts = []uint16{15000, 15001, 15004, 15006, 15008, 15009, 15020, 15021, 15053, 15090}
	relayPorts = []uint16{15101, 15106, 15120}
	relaying   = []plan.Mode{plan.NATProxy, plan.TProxy}
	notTProxy  = []plan.Mode{plan.Native, plan.Rules, plan.NATProxy, plan.Ambient}
	notAmbient = []plan.Mode{plan.Native, plan.Rules, plan.NATProxy, plan.TProxy}
)

// Addresses that are nobody's of the lab's own.
var (
	otherPod4, otherPod6   = netip.MustParseAddr("10.244.1.99"), netip.MustParseAddr("fd00:10:244:1::99")
	neighbour4, neighbour6 = netip.MustParseAddr("10.0.2.77"), netip.MustParseAddr("fd10:0:2::77")
	metadata               = netip.MustParseAddr("169.254.169.254")
	guestLink              = netip.MustParseAddr("fe80::4d:56ff:fe00:2") // link-local
)

// anycast are the routers' addresses of the guest's network and of the pod's.
var anycast = addrs("fd10:0:2::", "fd00:10:244:1::")

func addrs(list ...string) (out []netip.Addr) {
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

// inVain gives attempts a reason, and only the modes in which they are made.
func inVain(vain string, attempts ...attempt) []attempt {
	for i := range attempts {
		attempts[i].vain = vain
	}
	return attempts
}

func only(modes []plan.Mode, attempts ...attempt) []attempt {
	for i := range attempts {
		attempts[i].only = modes
	}
	return attempts
}

var (
	common   = []string{"tcp", "udp", "icmp"}
	uncommon = []string{"gre", "ipip", "esp", "sctp", "udplite"}
	odd      = []string{"ack", "rst", "fin", "syn-ack", "null", "xmas"}
	nobody   netip.Addr
)

// kinds is the table of attempts.
func kinds() []kind {
	disguised := addrs("0.0.0.0", "::", "::ffff:127.0.0.1", "::ffff:10.244.1.17", "::ffff:10.0.2.1")
	pod, gateway := []netip.Addr{PodIP4, PodIP6}, []netip.Addr{BridgeIP4, BridgeIP6}
	inside := slices.Concat(pod, gateway)
	return []kind{
		{"TCP, UDP and ICMP to 127.0.0.0/8, ::1, ::6", "Envoy's admin interface and the agent listen there, and KubeVirt sets route_localnet", lost,
			slices.Concat(each(common, nobody, addrs("127.0.0.1", "127.0.0.6", "127.1.2.3"), 15000), inVain(noRedirect, each([]string{"tcp"}, nobody, addrs("::6"), 15000)...),
				inVain(outsideLoopback, each(common, nobody, addrs("::1"), 15053)...),
				each([]string{"udp", "icmp"}, nobody, addrs("::6"), 15053))},
		{"TCP segments without a connection, to the same", "a rule for new connections may not see them", lost,
			slices.Concat(each(odd, nobody, addrs("127.0.0.1", "127.0.0.6"), 15000), inVain(outsideLoopback, each(odd, nobody, addrs("::1"), 15000)...),
				inVain(noRedirect, each(odd[:1], nobody, addrs("::6"), 15000)...), each(odd[1:], nobody, addrs("::6"), 15000))},
		{"GRE, IPIP, ESP, SCTP and UDP-Lite to the same", "a rule for TCP and UDP does not see them; a tunnel's end would unpack them", lost,
			slices.Concat(each(uncommon, nobody, addrs("127.0.0.1", "::6"), 0))},
		{"0.0.0.0, :: and ::ffff:127.0.0.1 as destinations", "whoever they are redirected to dials its own loopback by them", lost,
			slices.Concat(only(notTProxy, each([]string{"tcp"}, nobody, disguised[:1], 15000)...), inVain(noGroup, only([]plan.Mode{plan.TProxy}, each([]string{"tcp"}, nobody, disguised[:1], 15000)...)...),
				each([]string{"tcp"}, nobody, disguised[1:], 15000), inVain(noGroup, each([]string{"udp"}, nobody, disguised[:1], 15000)...), each([]string{"udp"}, nobody, disguised[1:], 15000))},
		{"loopback in fragments, with IP options or extension headers", "the port is not where a filter looks for it", lost, slices.Concat(awkward("tcp", addrs("127.0.0.1")[0]), awkward("udp", addrs("::6")[0]))},
		{"loopback in frames with a VLAN tag, or to everybody", "br_netfilter may leave them out", lost, frames()},

		{"TCP to the mesh's ports on the pod's and the gateway's addresses", "admin, metrics, health and the redirection's ports; a direct call to them loops", lost,
			each([]string{"tcp"}, nobody, inside, istioPorts...)},
		{"TCP to the relay's ports there", "metrics, and a relay that dials itself", lost, only(relaying, each([]string{"tcp"}, nobody, inside, relayPorts...)...)},
		{"TCP to the watcher's port there", "metrics and readiness", lost, only([]plan.Mode{plan.TProxy}, each([]string{"tcp"}, nobody, inside, 15121)...)},
		{"TCP and UDP to anycast addresses of the pod's networks", "a router has them as well (RFC 4291, 2.6.1), so that the pod's servers answer there", lost, each([]string{"tcp", "udp"}, nobody, anycast, 80, 15021)},
		{"TCP to the gateway's link-local address", "it is an address of the pod as well", lost, each([]string{"tcp"}, guestLink, []netip.Addr{bridgeLink}, 15000, 15021, 80)},
		{"UDP to the pod and the gateway", "DNS servers of the agent and the relay, and clients of DHCP", lost,
			slices.Concat(each([]string{"udp"}, nobody, inside, 68, 546, 5353, 15053, 15153), only(notAmbient, each([]string{"udp"}, nobody, inside, 53)...))},
		{"GRE, IPIP, ESP, SCTP and UDP-Lite to the pod and the gateway", "tunnels end in the pod's kernel", lost, each(uncommon, nobody, inside, 0)},
		{"the mesh's ports in fragments, with IP options or extension headers", "the port is not where a filter looks for it", lost, slices.Concat(awkward("tcp", PodIP4), awkward("tcp", PodIP6))},
		{"TCP segments without a connection, to the mesh's ports", "connection tracking has no opinion of them", lost, each(odd, nobody, inside, 15020)},
		{"source routes that end on the loopback", "the destination changes behind the filter", lost, sourceRoutes()},
		{"port 0", "it is no port in some lists", lost, slices.Concat(each([]string{"udp"}, nobody, inside, 0), each([]string{"tcp"}, nobody, gateway, 0))},
		{"UDP to broadcast and multicast addresses", "every server on all addresses hears it", lost,
			slices.Concat(each([]string{"udp"}, nobody, addrs("255.255.255.255", "10.0.2.255", "224.0.0.1", "ff02::1", "ff02::2"), 5353, 15053, 68))},
		{"TCP to broadcast and multicast addresses", "the mesh's proxy would dial them", lost, each([]string{"tcp"}, nobody, addrs("255.255.255.255", "10.0.2.255", "224.0.0.1", "ff02::1"), 80)},

		{"TCP, UDP and ICMP from another pod's or a peer's address", "policy goes by addresses; KubeVirt masquerades the guest's own alone", lost,
			slices.Concat(each(common, otherPod4, []netip.Addr{PeerIP4, NodeIP4}, 80), each(common, PeerIP4, []netip.Addr{NodeIP4, PodIP4}, 80), each(common, NodeIP4, []netip.Addr{PeerIP4, PodIP4}, 80),
				each(common, otherPod6, []netip.Addr{PeerIP6, NodeIP6}, 80), each(common, PeerIP6, []netip.Addr{NodeIP6, PodIP6}, 80), each(common, NodeIP6, []netip.Addr{PeerIP6, PodIP6}, 80))},
		{"the same from a neighbour's address on the guest's own network", "it leaves the pod as it is", lost,
			slices.Concat(each(common, neighbour4, []netip.Addr{PeerIP4}, 80), each(common, neighbour6, []netip.Addr{PeerIP6}, 80))},
		{"the same from the kubelet's address in an ambient mesh", "probes go past the mesh", lost,
			slices.Concat(each(common, ProbeIP4, []netip.Addr{PodIP4, PeerIP4}, 80), each(common, ProbeIP6, []netip.Addr{PodIP6, PeerIP6}, 80))},
		{"the same from the pod's and the gateway's own addresses, from 127.0.0.1 and ::1", "answers would go to the pod's own processes", lost,
			slices.Concat(inVain(martian, slices.Concat(each(common, PodIP4, []netip.Addr{PeerIP4}, 80), each(common, BridgeIP4, []netip.Addr{PeerIP4}, 80), each(common, addrs("127.0.0.1")[0], []netip.Addr{PeerIP4}, 80))...),
				each(common, PodIP6, []netip.Addr{PeerIP6}, 80), each(common, BridgeIP6, []netip.Addr{PeerIP6}, 80), each(common, addrs("::6")[0], []netip.Addr{PeerIP6}, 80), each([]string{"tcp"}, bridgeLink, []netip.Addr{PeerIP6}, 80),
				inVain(martian, each(common, addrs("::1")[0], []netip.Addr{PeerIP6}, 80)...))},
		{"the same from no address, and from multicast and broadcast addresses", "filters that know addresses of hosts pass them", lost,
			slices.Concat(inVain(martian, each(common, addrs("0.0.0.0")[0], []netip.Addr{PeerIP4}, 80)...), inVain(martian, each(common, addrs("224.0.0.1")[0], []netip.Addr{PeerIP4}, 80)...),
				inVain(martian, each(common, addrs("255.255.255.255")[0], []netip.Addr{PeerIP4}, 80)...), inVain(martian, each(common, addrs("ff02::1")[0], []netip.Addr{PeerIP6}, 80)...),
				each([]string{"tcp"}, addrs("::")[0], []netip.Addr{PeerIP6}, 80), inVain(noForward, each([]string{"udp", "icmp"}, addrs("::")[0], []netip.Addr{PeerIP6}, 80)...))},
		{"UDP answers in the name of a server that a process of the pod asks", "forged DNS answers, for one", lost, answers()},
		{"TCP segments in the name of a peer", "they end or feed connections of the pod's processes", lost, slices.Concat(each(odd, PeerIP4, pod[:1], 80), each(odd, PeerIP6, pod[1:], 80))},
		{"ICMP errors about connections of the pod's processes", "they end over UDP", lost, errorsOfOthers()},

		{"TCP to link-local destinations, such as 169.254.169.254", "services of the node's; the relay refuses them", enters, each([]string{"tcp"}, nobody, []netip.Addr{metadata}, 80)},
		{"UDP and ICMP to link-local destinations", "as without a mesh", leaves, each([]string{"udp", "icmp"}, nobody, []netip.Addr{metadata}, 80)},
		{"TCP to other ports of the pod's address", "a service may lead the guest back to itself", enters, each([]string{"tcp"}, nobody, pod, 80, 8080)},
		{"TCP to anywhere else", "what the mesh is for", enters, each([]string{"tcp"}, nobody, []netip.Addr{PeerIP4, PeerIP6}, 80, 15021)},
		{"UDP and ICMP to anywhere else", "no mesh takes them", leaves, each([]string{"udp", "icmp"}, nobody, []netip.Addr{PeerIP4, PeerIP6}, 9998)},
		{"DNS to the pod and the gateway, where the mesh takes all DNS", "the mesh answers in their place", enters, only([]plan.Mode{plan.Ambient}, each([]string{"udp", "tcp"}, nobody, []netip.Addr{PodIP4, BridgeIP4}, 53)...)},
		{"DHCP and DHCPv6", "a guest has its address by them", served, dhcp()},
		{"ICMP echo requests to the gateway and the pod", "people ping their gateway", answered, slices.Concat(each([]string{"icmp"}, nobody, inside, 0))},
		{"neighbour discovery and router messages", "a guest finds its gateway by them; of a guest's routes and redirects the pod's kernel takes none, being a router itself", answered, neighbours()},
	}
}

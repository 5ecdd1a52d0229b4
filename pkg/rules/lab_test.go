package rules

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"

	"github.com/meshvirt/meshvirt/pkg/nft"
	testlab "github.com/meshvirt/meshvirt/test/lab"
)

// A lab is what a guest, its pod and the network look like to the rules:
//
//	guest ── tap0 ─ k6t-eth0 │ pod │ eth0 ── network
//	10.0.2.2        10.0.2.1         10.244.1.17    10.244.1.1, 10.244.2.20, DNS 10.96.0.10
//
// The pod holds the rules that Istio and KubeVirt wrote (testdata), and stand-ins for the mesh's
// proxy. Whoever is asked answers with one line: who it is and from where it was asked; a proxy
// puts itself before the answer that it got. So "outbound, network from 10.244.1.17" is a path.
type lab struct {
	*testing.T
	guest, pod, network testlab.Netns
}

const (
	istioUID  = 1337
	proxyUID  = 1500
	appUID    = 1000
	noAnswer  = "no answer"
	answerIn  = 5 * time.Second        // for what must come
	silence   = 300 * time.Millisecond // for what must not
	podIP     = "10.244.1.17"
	podIP6    = "fd00:10:244:1::11"
	away      = "10.244.2.20" // somewhere in the network
	away6     = "fd00:10:244:2::20"
	excluded  = "10.244.3.20" // somewhere else
	excluded6 = "fd00:10:244:3::20"
	linkLocal = "fe80::1" // of k6t-eth0
)

// A world says which recorded rules the pod has.
type world struct {
	istio    string // files in testdata, without ending
	kubevirt string
	ipv6     bool        // the mesh serves IPv6
	native   bool        // Istio's own redirect of the virtual interface (-k) is there as recorded
	first    nft.Ruleset // written before the recorded rules, as an init container does
	// noBridgeNF turns off bridge-nf-call-iptables, which is on where br_netfilter is loaded, as on
	// nodes of Kubernetes: what comes to a bridge then passes prerouting as if it came from it.
	noBridgeNF bool
}

func (w world) withoutBridgeNF() world { w.noBridgeNF = true; return w }
func (w world) withNative() world      { w.native = true; return w }

func newLab(t *testing.T, w world) *lab {
	t.Helper()
	t.Parallel()
	l := &lab{T: t, guest: testlab.NewNetns(t), pod: testlab.NewNetns(t), network: testlab.NewNetns(t)}
	l.links(w)
	if w.first.Rules() > 0 {
		l.apply(w.first)
	}
	if w.istio != "" {
		l.pod.Run(t, l.recorded(w, w.istio+".iptables-save"), "iptables-restore")
		if w.ipv6 {
			l.pod.Run(t, l.recorded(w, w.istio+".ip6tables-save"), "ip6tables-restore")
		}
	}
	if w.kubevirt != "" {
		l.pod.Run(t, l.recorded(w, w.kubevirt+".nft"), "nft", "-f", "-")
	}
	l.servers(w)
	return l
}

// recorded reads rules from testdata. Outside mode native the webhook takes away Istio's own
// redirect of the virtual interface.
func (l *lab) recorded(w world, file string) string {
	l.Helper()
	b, err := os.ReadFile("testdata/" + file)
	if err != nil {
		l.Fatal(err)
	}
	var kept strings.Builder
	for line := range strings.Lines(string(b)) {
		if w.native || !strings.HasPrefix(line, "-A PREROUTING -i k6t-eth0 ") {
			kept.WriteString(line)
		}
	}
	return kept.String()
}

func (l *lab) links(w world) {
	l.Helper()
	for _, ns := range []testlab.Netns{l.guest, l.pod, l.network} {
		ns.Sysctl(l, "ipv6/conf/default/accept_dad", "0") // and nodad below: else an address is tentative until a worker has looked at it
	}
	path := func(ns testlab.Netns) string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), ns.Fd()) }
	meshLo := ""
	if w.ipv6 {
		meshLo = "addr add ::6/128 dev lo nodad"
	}
	ip := func(ns testlab.Netns, batch string) { l.Helper(); ns.Run(l, batch, "ip", "-batch", "-") }
	ip(l.pod, `
		link set lo up
		`+meshLo+`
		link add k6t-eth0 type bridge
		link add tap0 type veth peer name eth0 netns `+path(l.guest)+`
		link add eth0 type veth peer name eth0 netns `+path(l.network)+`
		link set tap0 master k6t-eth0
		link set tap0 up
		link set k6t-eth0 addrgenmode none
		link set k6t-eth0 up
		addr add 10.0.2.1/24 dev k6t-eth0
		addr add fd10:0:2::1/120 dev k6t-eth0 nodad
		addr add `+linkLocal+`/64 dev k6t-eth0 nodad
		link set eth0 up
		addr add `+podIP+`/24 dev eth0
		addr add `+podIP6+`/64 dev eth0 nodad`)
	ip(l.network, `
		link set lo up
		link set eth0 up
		addr add 10.244.1.1/24 dev eth0
		addr add fd00:10:244:1::1/64 dev eth0 nodad
		addr add 10.96.0.10/32 dev lo
		addr add fd00:10:96::a/128 dev lo nodad
		addr add `+away+`/32 dev lo
		addr add `+away6+`/128 dev lo nodad
		addr add `+excluded+`/32 dev lo
		addr add `+excluded6+`/128 dev lo nodad`)
	ip(l.pod, `
		route add default via 10.244.1.1
		route add default via fd00:10:244:1::1`)
	// The guest's own loopback is down, so that it may send to 127.0.0.1 and ::6 of the pod.
	ip(l.guest, `
		link set eth0 up
		addr add 10.0.2.2/24 dev eth0
		addr add fd10:0:2::2/120 dev eth0 nodad
		route add default via 10.0.2.1
		route add default via fd10:0:2::1`)
	l.guest.Sysctl(l, "ipv4/conf/eth0/route_localnet", "1")
	l.pod.Sysctl(l, "ipv4/ip_forward", "1")
	l.pod.Sysctl(l, "ipv6/conf/all/forwarding", "1")
	l.pod.Sysctl(l, "ipv4/conf/k6t-eth0/route_localnet", "1")
	if w.noBridgeNF {
		l.pod.Sysctl(l, "bridge/bridge-nf-call-iptables", "0")
		l.pod.Sysctl(l, "bridge/bridge-nf-call-ip6tables", "0")
	}
}

// servers starts everybody who answers.
func (l *lab) servers(w world) {
	says := func(who string) func(net.Addr, netip.AddrPort) string {
		return func(from net.Addr, _ netip.AddrPort) string { return who + " from " + hostOf(from) }
	}
	everywhere, loopbacks := []string{"0.0.0.0", "::"}, []string{"127.0.0.1"}
	if w.ipv6 {
		loopbacks = append(loopbacks, "::6")
	}
	for _, port := range []string{"22", "80", "81", "3306", "15021"} {
		l.serve(l.guest, appUID, "tcp", everywhere, port, says("guest"))
		l.serve(l.network, appUID, "tcp", everywhere, port, says("network"))
	}
	// UDP is bound to addresses, so that answers come from where the question went.
	l.serve(l.guest, appUID, "udp", []string{"10.0.2.2", "fd10:0:2::2"}, "9999", says("guest"))
	l.serve(l.network, appUID, "udp", []string{away, away6}, "9999", says("network"))
	for _, network := range []string{"tcp", "udp"} {
		l.serve(l.network, appUID, network, []string{"10.96.0.10", "fd00:10:96::a"}, "53", says("cluster DNS"))
		l.serve(l.pod, istioUID, network, []string{"127.0.0.1", "::1"}, "15053", says("mesh DNS"))
	}
	// Our forwarder asks each nameserver from the pod; answers come from where the question went.
	for port, server := range map[string]string{"15153": "10.96.0.10:53", "15154": "[fd00:10:96::a]:53"} {
		l.serve(l.pod, proxyUID, "udp", []string{"10.0.2.1", "fd10:0:2::1"}, port, func(net.Addr, netip.AddrPort) string {
			return "forwarder, " + l.ask(l.pod, proxyUID, "udp", "", server, answerIn)
		})
	}
	// What the pod has to keep from the guest, or not.
	l.serve(l.pod, istioUID, "tcp", []string{"127.0.0.1"}, "15000", says("admin"))
	l.serve(l.pod, appUID, "tcp", loopbacks, "8001", says("admin"))
	l.serve(l.pod, istioUID, "tcp", everywhere, "15021", says("health"))
	l.serve(l.pod, proxyUID, "tcp", everywhere, "15120", says("status"))
	l.serve(l.pod, appUID, "udp", []string{"10.0.2.1", podIP, podIP6}, "7000", says("pod"))
	l.serve(l.pod, appUID, "udp", []string{"10.0.2.1"}, "67", says("DHCP"))
	l.serve(l.pod, appUID, "udp", []string{"fd10:0:2::1"}, "547", says("DHCP"))

	// The mesh's proxy.
	l.serve(l.pod, istioUID, "tcp", everywhere, "15001", func(_ net.Addr, orig netip.AddrPort) string {
		return "outbound, " + l.ask(l.pod, istioUID, "tcp", "", orig.String(), answerIn)
	})
	l.serve(l.pod, istioUID, "tcp", everywhere, "15006", func(_ net.Addr, orig netip.AddrPort) string {
		return "inbound, " + l.ask(l.pod, istioUID, "tcp", meshSource(nft.FamilyOf(orig.Addr())).String(), orig.String(), answerIn)
	})
	// Ours, of mode nat-proxy.
	l.serve(l.pod, proxyUID, "tcp", everywhere, "15101", func(_ net.Addr, orig netip.AddrPort) string {
		return "proxy, " + l.ask(l.pod, proxyUID, "tcp", "", orig.String(), answerIn)
	})
	l.serve(l.pod, proxyUID, "tcp", everywhere, "15106", func(_ net.Addr, orig netip.AddrPort) string {
		guest := netip.MustParseAddr("10.0.2.2")
		if orig.Addr().Is6() {
			guest = netip.MustParseAddr("fd10:0:2::2")
		}
		return "proxy, " + l.ask(l.pod, proxyUID, "tcp", "", netip.AddrPortFrom(guest, orig.Port()).String(), answerIn)
	})
}

// apply writes r into the pod.
func (l *lab) apply(r nft.Ruleset) {
	l.Helper()
	if err := r.Apply(nftables.WithNetNSFd(int(l.pod.Fd()))); err != nil {
		l.Fatal(err)
	}
}

// drops is how many packets the guard has dropped.
func (l *lab) drops() (n int) {
	l.Helper()
	for line := range strings.Lines(l.pod.Run(l, "", "nft", "list", "table", "inet", Table)) {
		if i := strings.Index(line, "counter packets "); i >= 0 {
			var packets int
			fmt.Sscanf(line[i:], "counter packets %d", &packets)
			n += packets
		}
	}
	return n
}

// without is r without the rules that have this reason.
func without(r nft.Ruleset, why string) nft.Ruleset {
	var all []*nft.Chain
	for _, c := range r.Chains() {
		kept := *c
		kept.Rules = slices.DeleteFunc(slices.Clone(c.Rules), func(x nft.Rule) bool { return strings.Contains(x.Why, why) })
		all = append(all, &kept)
	}
	return nft.New(Table, all...)
}

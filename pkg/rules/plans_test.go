package rules

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"

	"github.com/meshvirt/meshvirt/pkg/nft"
	"github.com/meshvirt/meshvirt/pkg/plan"
	testlab "github.com/meshvirt/meshvirt/test/lab"
)

func prefixes(list ...string) (out []netip.Prefix) {
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func addrs(list ...string) (out []netip.Addr) {
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

// examplePlan is a plain plan: Istio's defaults, a VM in KubeVirt's masquerade binding.
func examplePlan(mode plan.Mode) plan.Plan {
	p := plan.Plan{
		Mode: mode, Interfaces: []string{"k6t-eth0"}, PodInterface: "eth0",
		Guest:    plan.Guest{IPv4: netip.MustParseAddr("10.0.2.2"), IPv6: netip.MustParseAddr("fd10:0:2::2")},
		Mesh:     plan.Mesh{OutboundPort: 15001, InboundPort: 15006, UID: 1337, GID: 1337, OwnPorts: []uint16{15008, 15020, 15021, 15090}},
		Outbound: plan.Outbound{All: true},
		Inbound:  plan.Inbound{All: true},
	}
	switch mode {
	case plan.NATProxy:
		p.Proxy = &plan.Proxy{UID: 1500, OutboundPort: 15101, InboundPort: 15106, StatusPort: 15120}
	case plan.TProxy:
		p.Proxy, p.WatchPort = &plan.Proxy{OutboundPort: 15101, InboundPort: 15106, StatusPort: 15120}, 15121
	}
	return p
}

// intercepted has the mesh take inbound connections by TPROXY, in the modes that know of it.
func intercepted(p *plan.Plan, mark uint32) {
	if p.Mode != plan.Native && p.Mode != plan.Ambient {
		p.Mesh.TProxyMark = mark
	}
}

// captureDNS is for a mesh that captures DNS.
func captureDNS(p *plan.Plan, all bool) {
	p.Mesh.DNS = &plan.DNS{Port: 15053, All: all}
	if p.Proxy != nil {
		p.Proxy.DNSPort = 15153
	}
}

var exampleServers = addrs("10.96.0.10", "fd00:10:96::a")

// A choice is one value of one dimension of the plans that are tested in all combinations.
type choice struct {
	name string
	set  func(*plan.Plan, *Pod)
}

var dimensions = [][]choice{
	{
		{"v4", func(*plan.Plan, *Pod) {}},
		{"dual", func(_ *plan.Plan, pod *Pod) { pod.IPv6 = true }},
		{"intercepted", func(p *plan.Plan, pod *Pod) { pod.IPv6 = true; intercepted(p, 1337) }},
	},
	{
		{"noports", func(*plan.Plan, *Pod) {}},
		{"ports", func(p *plan.Plan, _ *Pod) {
			p.Guest.TCP = []plan.PortRange{plan.Port(22), {First: 8000, Last: 8100}, plan.Port(15020)}
			p.Guest.UDP = []plan.PortRange{{First: 60000, Last: 65535}}
			p.WatchPort, p.Assumed.Interfaces = 15121, true
		}},
	},
	{
		{"nodns", func(*plan.Plan, *Pod) {}},
		{"dns", func(p *plan.Plan, _ *Pod) { captureDNS(p, false) }},
		{"alldns", func(p *plan.Plan, _ *Pod) { captureDNS(p, true) }},
	},
	{
		{"all", func(*plan.Plan, *Pod) {}},
		{"excludes", func(p *plan.Plan, _ *Pod) {
			p.Outbound.ExcludePorts = []uint16{3306, 3307, 65535}
			p.Outbound.ExcludeCIDRs = prefixes("10.0.0.0/8", "10.96.0.1/32", "192.168.0.0/24", "192.168.1.0/24", "192.168.2.0/24", "255.255.255.255/32", "fd00:1::/32", "ffff::/16")
			p.Inbound.ExcludePorts = []uint16{22, 80, 15021}
		}},
		{"includes", func(p *plan.Plan, _ *Pod) {
			p.Outbound = plan.Outbound{IncludeCIDRs: prefixes("0.0.0.0/1", "128.0.0.0/1", "::/0"), IncludePorts: []uint16{443}, ExcludePorts: []uint16{1}}
			p.Inbound = plan.Inbound{IncludePorts: []uint16{80, 81, 443}}
		}},
		{"none", func(p *plan.Plan, _ *Pod) { p.Outbound, p.Inbound = plan.Outbound{}, plan.Inbound{} }},
	},
}

// forEachPlan runs f for every mode and every combination of the dimensions.
func forEachPlan(t *testing.T, f func(t *testing.T, p plan.Plan, pod Pod)) {
	var walk func(name string, rest [][]choice, set []choice)
	walk = func(name string, rest [][]choice, set []choice) {
		if len(rest) > 0 {
			for _, c := range rest[0] {
				walk(name+","+c.name, rest[1:], append(set[:len(set):len(set)], c))
			}
			return
		}
		for _, mode := range []plan.Mode{plan.Native, plan.Rules, plan.NATProxy, plan.TProxy, plan.Ambient} {
			t.Run(string(mode)+name, func(t *testing.T) {
				p, pod := examplePlan(mode), Pod{Nameservers: exampleServers}
				for _, c := range set {
					c.set(&p, &pod)
				}
				f(t, p, pod)
			})
		}
	}
	walk("", dimensions, nil)
}

// checkKernel compares what the kernel holds with the ruleset's text: after Apply, after applying it
// again, and in another namespace after nft itself has read the text.
func checkKernel(t *testing.T, r nft.Ruleset, other testlab.Netns, namespaces ...testlab.Netns) {
	t.Helper()
	want := testlab.NormalTable(r.String())
	for _, ns := range namespaces {
		for _, when := range []string{"applied", "applied again"} {
			if err := r.Apply(nftables.WithNetNSFd(int(ns.Fd()))); err != nil {
				t.Fatalf("%s: %v", when, err)
			}
			if diff := cmp.Diff(want, ns.Table(t, Table)); diff != "" {
				t.Fatalf("%s: nft lists other rules (-text +kernel):\n%s", when, diff)
			}
		}
	}
	other.Run(t, r.String(), "nft", "-f", "-")
	if diff := cmp.Diff(want, other.Table(t, Table)); diff != "" {
		t.Fatalf("read by nft: nft lists other rules (-text +kernel):\n%s", diff)
	}
}

func TestTextIsWhatTheKernelHolds(t *testing.T) {
	forEachPlan(t, func(t *testing.T, p plan.Plan, pod Pod) {
		t.Parallel()
		r, err := Build(p, pod)
		if err != nil {
			t.Fatal(err)
		}
		checkKernel(t, r, testlab.NewNetns(t), testlab.NewNetns(t))
	})
}

func TestSeveralInterfaces(t *testing.T) {
	p := examplePlan(plan.NATProxy)
	p.Interfaces = []string{"k6t-net1", "k6t-eth0", "k6t-net1", ";{}#'$x@=<>&"}
	r, err := Build(p, Pod{IPv6: true})
	if err != nil {
		t.Fatal(err)
	}
	if text := r.String(); !strings.Contains(text, "iifname @interfaces jump from_guest") || strings.Count(text, `"k6t-net1"`) != 1 {
		t.Errorf("want one set of interfaces and look-ups in it:\n%s", text)
	}
	checkKernel(t, r, testlab.NewNetns(t), testlab.NewNetns(t))
}

// TestRandomPlans tries plans that nobody would write, with numbers at the edges.
func TestRandomPlans(t *testing.T) {
	const plans = 200
	rnd := rand.New(rand.NewPCG(1, 2))
	a, b := testlab.NewNetns(t), testlab.NewNetns(t)
	for i := range plans {
		p, pod := randomPlan(rnd)
		r, err := Build(p, pod)
		if err != nil {
			t.Fatalf("plan %d: %v\n%+v", i, err, p)
		}
		b.Run(t, "", "nft", "flush", "ruleset")
		checkKernel(t, r, b, a)
		if t.Failed() {
			t.Fatalf("plan %d: %+v", i, p)
		}
	}
}

func randomPlan(rnd *rand.Rand) (plan.Plan, Pod) {
	p := examplePlan([]plan.Mode{plan.Native, plan.Rules, plan.NATProxy, plan.TProxy, plan.Ambient}[rnd.IntN(5)])
	coin := func() bool { return rnd.IntN(2) == 0 }
	port := func() uint16 {
		return []uint16{1, 2, 53, 80, 15021, 65534, 65535, uint16(1 + rnd.IntN(65535))}[rnd.IntN(8)]
	}
	list := func() (out []uint16) {
		for range rnd.IntN(6) {
			out = append(out, port())
		}
		return out
	}
	ranges := func() (out []plan.PortRange) {
		for range rnd.IntN(4) {
			x, y := port(), port()
			out = append(out, plan.PortRange{First: min(x, y), Last: max(x, y)})
		}
		return out
	}
	cidrs := func() (out []netip.Prefix) {
		for range rnd.IntN(12) {
			var a netip.Addr
			if coin() {
				a = netip.AddrFrom4([4]byte{[]byte{0, 10, 255}[rnd.IntN(3)], byte(rnd.IntN(2) * 255), byte(rnd.IntN(4)), byte(rnd.Uint32())})
			} else { // not within ::/96, which nft writes in another way
				a = netip.AddrFrom16([16]byte{[]byte{0x20, 0xfd, 0xff}[rnd.IntN(3)], byte(rnd.IntN(2) * 255), byte(rnd.IntN(4)), 15: byte(rnd.Uint32())})
			}
			x, _ := a.Prefix(rnd.IntN(a.BitLen() + 1))
			out = append(out, x)
		}
		return out
	}
	for range rnd.IntN(3) {
		p.Interfaces = append(p.Interfaces, fmt.Sprintf("k6t-%d", rnd.IntN(4)))
	}
	switch rnd.IntN(4) {
	case 0:
		p.Guest.IPv4 = netip.Addr{}
	case 1:
		p.Guest.IPv6 = netip.Addr{}
	}
	p.Guest.TCP, p.Guest.UDP = ranges(), ranges()
	p.Mesh.OutboundPort, p.Mesh.InboundPort, p.Mesh.UID, p.Mesh.OwnPorts, p.Mesh.DualStack = port(), port(), rnd.Uint32(), append(list(), port()), coin()
	if coin() {
		intercepted(&p, rnd.Uint32()&^plan.OwnMarks)
	}
	if coin() {
		p.Mesh.DNS = &plan.DNS{Port: port(), All: coin()}
	}
	p.Outbound = plan.Outbound{All: coin(), ExcludeCIDRs: cidrs(), ExcludePorts: list(), IncludePorts: list()}
	if !p.Outbound.All {
		p.Outbound.IncludeCIDRs = cidrs()
	}
	p.Inbound = plan.Inbound{All: coin(), ExcludePorts: list()}
	if !p.Inbound.All {
		p.Inbound.IncludePorts = list()
	}
	return p, Pod{IPv6: coin(), Nameservers: exampleServers[:rnd.IntN(3)]}
}

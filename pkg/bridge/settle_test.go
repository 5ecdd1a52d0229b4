package bridge

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/meshvirt/meshvirt/pkg/plan"
)

func examplePlan(change ...func(*plan.Plan)) plan.Plan {
	p := plan.Plan{
		Mode: plan.Rules, Interfaces: []string{"k6t-eth0"}, PodInterface: "eth0", WatchPort: 15121,
		Guest:   plan.Guest{IPv4: addr("10.0.2.2"), IPv6: addr("fd10:0:2::2")},
		Assumed: plan.Assumed{Interfaces: true, Guest: true},
	}
	for _, f := range change {
		f(&p)
	}
	return p
}

func addr(s string) (a netip.Addr) {
	if s != "" {
		a = netip.MustParseAddr(s)
	}
	return a
}

func at(name, podInterface, v4, v6 string) Bridge {
	return Bridge{Name: name, PodInterface: podInterface, IPv4: addr(v4), IPv6: addr(v6)}
}

func TestSettle(t *testing.T) {
	eth0 := at("k6t-eth0", "eth0", "10.0.2.2", "fd10:0:2::2")
	udn := at("k6t-ovn-udn1", "ovn-udn1", "10.0.2.2", "fd10:0:2::2")
	other := at("k6t-net1", "net1", "10.11.12.2", "")
	certain := func(p *plan.Plan) { p.Assumed = plan.Assumed{} }
	certainName := func(p *plan.Plan) { p.Assumed.Interfaces = false }
	once := func(p *plan.Plan) { p.WatchPort = 0 }
	unchanged := func(*plan.Plan) {}
	becomes := func(name, pod, v4, v6 string) func(*plan.Plan) {
		return func(p *plan.Plan) {
			p.Interfaces, p.PodInterface, p.Guest = []string{name}, pod, plan.Guest{IPv4: addr(v4), IPv6: addr(v6)}
		}
	}
	named := func(names ...string) func(*plan.Plan) {
		return func(p *plan.Plan) { p.Interfaces, p.Assumed.Interfaces = names, false }
	}
	for name, c := range map[string]struct {
		plan  []func(*plan.Plan)
		found Found
		want  func(*plan.Plan)
		what  []What
	}{
		"nothing yet":                       {nil, Found{Links: []string{"eth0", "k6t-eth0"}}, unchanged, nil},
		"as assumed":                        {nil, Found{Bridges: []Bridge{eth0}}, unchanged, nil},
		"as planned":                        {[]func(*plan.Plan){certain}, Found{Bridges: []Bridge{eth0}}, unchanged, nil},
		"another interface":                 {nil, Found{Bridges: []Bridge{udn}}, becomes("k6t-ovn-udn1", "ovn-udn1", "10.0.2.2", "fd10:0:2::2"), nil},
		"another address, the other stays":  {nil, Found{Bridges: []Bridge{other}}, becomes("k6t-net1", "net1", "10.11.12.2", "fd10:0:2::2"), nil},
		"hashed":                            {nil, Found{Bridges: []Bridge{at("k6t-37a8eec1ce1", "pod37a8eec1ce1", "10.0.2.2", "")}}, becomes("k6t-37a8eec1ce1", "pod37a8eec1ce1", "10.0.2.2", "fd10:0:2::2"), nil},
		"the name is certain":               {[]func(*plan.Plan){certainName}, Found{Bridges: []Bridge{at("k6t-eth0", "eth0", "10.11.12.2", "")}}, becomes("k6t-eth0", "eth0", "10.11.12.2", "fd10:0:2::2"), nil},
		"two candidates":                    {nil, Found{Bridges: []Bridge{eth0, other}}, unchanged, []What{Bridges}},
		"two candidates, none as assumed":   {nil, Found{Bridges: []Bridge{other, udn}}, unchanged, []What{Bridges}},
		"two candidates, one certain":       {[]func(*plan.Plan){certain}, Found{Bridges: []Bridge{eth0, other}}, unchanged, nil},
		"two named, guest assumed":          {[]func(*plan.Plan){named("k6t-eth0", "k6t-net1")}, Found{Bridges: []Bridge{eth0, other}}, unchanged, []What{Bridges}},
		"two named, one has the guest":      {[]func(*plan.Plan){named("k6t-net1", "k6t-eth0"), certain}, Found{Bridges: []Bridge{eth0, other}}, unchanged, nil},
		"two named, neither has it":         {[]func(*plan.Plan){named("k6t-net1", "k6t-net2"), certain}, Found{Bridges: []Bridge{other, at("k6t-net2", "net2", "10.9.9.2", "")}}, func(p *plan.Plan) { p.PodInterface = "net1" }, []What{Guest}},
		"the name is denied":                {[]func(*plan.Plan){certain}, Found{Bridges: []Bridge{udn}, Links: []string{"k6t-eth0"}}, unchanged, []What{Interface}},
		"not KubeVirt's interface":          {[]func(*plan.Plan){certain, named("vnet0")}, Found{Bridges: []Bridge{udn}, Links: []string{"vnet0"}}, unchanged, nil},
		"not KubeVirt's, and not there":     {[]func(*plan.Plan){certain, named("vnet0")}, Found{Bridges: []Bridge{udn}}, unchanged, []What{Interface}},
		"both addresses are denied":         {[]func(*plan.Plan){certain}, Found{Bridges: []Bridge{at("k6t-eth0", "eth0", "10.11.12.2", "fd20::2")}}, unchanged, []What{Guest, Guest}},
		"a family that the plan leaves out": {[]func(*plan.Plan){certain, func(p *plan.Plan) { p.Guest.IPv6 = addr("") }}, Found{Bridges: []Bridge{eth0}}, unchanged, nil},
		"once, as assumed":                  {[]func(*plan.Plan){once}, Found{Bridges: []Bridge{eth0}}, unchanged, nil},
		"once, another interface":           {[]func(*plan.Plan){once}, Found{Bridges: []Bridge{udn}}, unchanged, []What{Interface}},
		"once, another address":             {[]func(*plan.Plan){once}, Found{Bridges: []Bridge{at("k6t-eth0", "eth0", "10.11.12.2", "")}}, unchanged, []What{Guest}},
		"native":                            {[]func(*plan.Plan){func(p *plan.Plan) { p.Mode = plan.Native }}, Found{Bridges: []Bridge{udn}}, becomes("k6t-ovn-udn1", "ovn-udn1", "10.0.2.2", "fd10:0:2::2"), []What{Mesh}},
		"intercepted by TPROXY":             {[]func(*plan.Plan){func(p *plan.Plan) { p.Mesh.TProxyMark = 1337 }}, Found{Bridges: []Bridge{udn}}, becomes("k6t-ovn-udn1", "ovn-udn1", "10.0.2.2", "fd10:0:2::2"), []What{Mesh}},
		"native, as assumed":                {[]func(*plan.Plan){func(p *plan.Plan) { p.Mode = plan.Native }}, Found{Bridges: []Bridge{eth0}}, unchanged, nil},
	} {
		t.Run(name, func(t *testing.T) {
			p := examplePlan(c.plan...)
			s := NewSettler(p).Settle(c.found)
			want := examplePlan(c.plan...)
			c.want(&want)
			if diff := cmp.Diff(want, s.Plan, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
				t.Errorf("plan (-want +got)\n%s", diff)
			}
			var what []What
			for _, x := range s.Contradictions {
				what = append(what, x.What)
				if !strings.Contains(x.Text, "found ") || !strings.Contains(x.Text, "set ") || !strings.Contains(x.Text, "meshvirt.io/") {
					t.Errorf("%q: want what was found, and what to set", x.Text)
				}
			}
			if diff := cmp.Diff(c.what, what); diff != "" {
				t.Errorf("contradictions (-want +got)\n%s", diff)
			}
			if err := s.Contradicted(); (err != nil) != (len(c.what) > 0) {
				t.Errorf("error %v", err)
			}
		})
	}
}

// TestSettler has one look after the other: what was settled stays until something else is certain.
func TestSettler(t *testing.T) {
	udn, net1 := at("k6t-ovn-udn1", "ovn-udn1", "10.0.2.2", ""), at("k6t-net1", "net1", "10.11.12.2", "")
	x := NewSettler(examplePlan(func(p *plan.Plan) { p.Mode = plan.Native }))
	for i, c := range []struct {
		found []Bridge
		name  string
		guest string
		what  []What
	}{
		{nil, "k6t-eth0", "10.0.2.2", nil},
		{[]Bridge{udn}, "k6t-ovn-udn1", "10.0.2.2", []What{Mesh}},
		{nil, "k6t-ovn-udn1", "10.0.2.2", []What{Mesh}},
		{[]Bridge{udn}, "k6t-ovn-udn1", "10.0.2.2", []What{Mesh}},
		{[]Bridge{net1, udn}, "k6t-ovn-udn1", "10.0.2.2", []What{Bridges}},
		{[]Bridge{net1}, "k6t-net1", "10.11.12.2", []What{Mesh}},
		{[]Bridge{at("k6t-eth0", "eth0", "10.0.2.2", "")}, "k6t-eth0", "10.0.2.2", nil},
	} {
		s := x.Settle(Found{Bridges: c.found})
		var what []What
		for _, y := range s.Contradictions {
			what = append(what, y.What)
		}
		if s.Plan.Interfaces[0] != c.name || s.Plan.Guest.IPv4 != addr(c.guest) || !slices.Equal(what, c.what) {
			t.Errorf("look %d: %s at %s, contradictions %v; want %s, %s, %v", i, s.Plan.Interfaces, s.Plan.Guest.IPv4, what, c.name, c.guest, c.what)
		}
	}
}

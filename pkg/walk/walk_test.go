package walk

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/meshvirt/meshvirt/pkg/nft"
	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/rules"
)

// What the interpreter does not know is an error, not a rule that does not match.
func TestUnknown(t *testing.T) {
	for name, e := range map[string]expr.Any{
		"expression": &expr.Queue{},
		"meta key":   &expr.Meta{Key: expr.MetaKeyPRIORITY, Register: 1},
		"set meta":   &expr.Meta{Key: expr.MetaKeyPRIORITY, Register: 1, SourceRegister: true},
		"ct key":     &expr.Ct{Key: expr.CtKeySTATUS, Register: 1},
		"set ct":     &expr.Ct{Key: expr.CtKeyLABELS, Register: 1, SourceRegister: true},
		"payload":    &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1},
		"fib":        &expr.Fib{Register: 1, ResultOIFNAME: true, FlagDADDR: true},
		"comparison": &expr.Cmp{Op: expr.CmpOpLt, Register: 1},
		"bitwise":    &expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: make([]byte, 4)},
		"set":        &expr.Lookup{SourceRegister: 1, SetName: "nothing"},
		"verdict":    &expr.Verdict{Kind: expr.VerdictGoto, Chain: "x"},
		"chain":      &expr.Verdict{Kind: expr.VerdictJump, Chain: "x"},
		"nat":        &expr.Masq{}, // in a chain of type filter
		"snat":       &expr.NAT{Type: expr.NATTypeSourceNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1},
	} {
		p := New("eth0", unix.IPPROTO_TCP, netip.MustParseAddrPort("10.0.0.1:1"), netip.MustParseAddrPort("10.0.0.2:2"))
		p.Conn = &Conn{Dst: p.Dst}
		m := machine{nat: name == "snat"}
		c := &nft.Chain{Name: "c"}
		c.Add("-", nft.Word{Text: "some rule", Exprs: []expr.Any{e}})
		if _, _, err := m.call(c, &p); err == nil || !strings.Contains(err.Error(), `chain c: rule "some rule": `) {
			t.Errorf("%s: error %v, want one that names the rule", name, err)
		}
	}
}

// A query and an answer in different zones of connection tracking are not one connection to the kernel.
func TestZones(t *testing.T) {
	pod := examplePod(plan.Rules)
	w := newWorld(pod, nft.Ruleset{}, 0)
	w.leg = &Leg{Conn: &Conn{Zone: 53}}
	if err := w.track(&Packet{Reply: true, Conn: &Conn{Zone: 1}}); err == nil {
		t.Error("a reply in another zone was taken for one")
	}
}

// examplePod is one of a dual-stack mesh that captures DNS, with one port excluded each way.
func examplePod(mode plan.Mode) Pod {
	return Pod{Plan: example(mode), Observed: observed, BridgeNF: true}
}

var observed = rules.Pod{IPv6: true, Nameservers: []netip.Addr{netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fd00:10:96::a")}}

func example(mode plan.Mode) plan.Plan {
	p := plan.Plan{
		Release: plan.Release, Mode: mode, Interfaces: []string{"k6t-eth0"}, PodInterface: "eth0",
		Guest: plan.Guest{IPv4: netip.MustParseAddr("10.0.2.2"), IPv6: netip.MustParseAddr("fd10:0:2::2")},
		Mesh: plan.Mesh{
			OutboundPort: 15001, InboundPort: 15006, UID: 1337, GID: 1337, OwnPorts: []uint16{15008, 15020, 15021, 15090},
			DNS: &plan.DNS{Port: 15053},
		},
		Outbound: plan.Outbound{All: true, ExcludePorts: []uint16{3306}}, Inbound: plan.Inbound{All: true, ExcludePorts: []uint16{22}},
	}
	switch mode {
	case plan.NATProxy:
		p.Proxy = &plan.Proxy{UID: 1500, OutboundPort: 15101, InboundPort: 15106, StatusPort: 15120, DNSPort: 15153, DrainSeconds: 5}
	case plan.TProxy:
		p.Proxy, p.WatchPort = &plan.Proxy{OutboundPort: 15101, InboundPort: 15106, StatusPort: 15120, DNSPort: 15153, DrainSeconds: 5}, 15121
	case plan.Ambient:
		p.Mesh = plan.Mesh{OutboundPort: 15001, InboundPort: 15006, OwnPorts: []uint16{15008}, DNS: &plan.DNS{Port: 15053, All: true}}
	}
	return p
}

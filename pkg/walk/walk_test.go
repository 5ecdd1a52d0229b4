package walk

import (
	"net/netip"
	"testing"

	"github.com/meshvirt/meshvirt/pkg/interpreter"
	"github.com/meshvirt/meshvirt/pkg/nft"
	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/rules"
)

// A query and an answer in different zones of connection tracking are not one connection to the kernel.
func TestZones(t *testing.T) {
	pod := SamplePod(plan.Rules)
	w := newWorld(pod, nft.Ruleset{}, 0)
	w.leg = &Leg{Conn: &interpreter.Conn{Zone: 53}}
	if err := w.track(&interpreter.Packet{Reply: true, Conn: &interpreter.Conn{Zone: 1}}); err == nil {
		t.Error("a reply in another zone was taken for one")
	}
}

// SamplePod is for tests in and of this package: one of a dual-stack mesh that captures DNS, with one port excluded each way.
func SamplePod(mode plan.Mode) Pod {
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

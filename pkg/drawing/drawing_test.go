package drawing

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/rules"
	"github.com/meshvirt/meshvirt/pkg/walk"
)

var nameservers = []netip.Addr{netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fd00:10:96::a")}

// What a plan says shows in the drawing, and what it does not say does not.
func TestOf(t *testing.T) {
	base := func() plan.Plan {
		return plan.Plan{
			Release: plan.Release, Mode: plan.Rules, Interfaces: []string{"k6t-eth0"}, PodInterface: "eth0",
			Guest:    plan.Guest{IPv4: netip.MustParseAddr("10.0.2.2"), IPv6: netip.MustParseAddr("fd10:0:2::2")},
			Mesh:     plan.Mesh{OutboundPort: 15001, InboundPort: 15006, UID: 1337, GID: 1337, OwnPorts: []uint16{15021}},
			Outbound: plan.Outbound{All: true}, Inbound: plan.Inbound{All: true},
		}
	}
	for name, c := range map[string]struct {
		change     func(*plan.Plan)
		want, miss []string
	}{
		"plain":            {func(*plan.Plan) {}, []string{"any address", "to any port of the pod", "does not capture", "IPv6: guest -> peer:80, TCP\n            eth0      postrouting 100     KubeVirt"}, []string{"excluded  ", "else  "}},
		"both families":    {func(p *plan.Plan) { p.Mesh.DualStack = true }, []string{"IPv4, and IPv6 alike: guest -> peer:80", "IPv4, and IPv6 alike: peer -> pod:9999"}, []string{"refused"}},
		"nothing included": {func(p *plan.Plan) { p.Outbound.All, p.Inbound.All = false, false }, []string{"no TCP of the guest goes into the mesh", "TCP of the guest to anything else", "any other port of the pod"}, []string{":15001", ":15006"}},
		"inclusions": {func(p *plan.Plan) {
			p.Outbound = plan.Outbound{IncludeCIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, IncludePorts: []uint16{443}}
			p.Inbound = plan.Inbound{IncludePorts: []uint16{80}}
		}, []string{"TCP to 10.0.0.0/8; TCP port 443", "TCP to the pod, port 80", "TCP of the guest to anything else"}, []string{"any address"}},
		"listed ports": {func(p *plan.Plan) {
			p.Guest.TCP = []plan.PortRange{plan.Port(80), {First: 8000, Last: 8100}}
			p.Inbound.ExcludePorts = []uint16{22, 8050, 15021}
		}, []string{"the guest has 80, 8000-8100, 22\n", "excluded  TCP to the pod, port 22, 8050\n", "lists no UDP port"}, []string{"UDP in    to any"}},
		"DNS of the nameservers": {func(p *plan.Plan) { p.Mesh.DNS = &plan.DNS{Port: 15053} }, []string{"the pod's nameservers", "dnat ip to 127.0.0.1:15053"}, nil},
		"all DNS":                {func(p *plan.Plan) { p.Mesh.DNS = &plan.DNS{Port: 15053, All: true} }, []string{"any server"}, nil},
		"DNS by the relay": {func(p *plan.Plan) {
			p.Mode, p.Mesh.DNS = plan.NATProxy, &plan.DNS{Port: 15053}
			p.Proxy = &plan.Proxy{UID: 1500, OutboundPort: 15101, InboundPort: 15106, StatusPort: 15120, DNSPort: 15153}
		}, []string{"the pod's nameservers\n", "redirect to :15153", "meshvirt-proxy (uid 1500) dials nameserver:53\n", "DNS to :15053"}, []string{"dnat ip to 127.0.0.1"}},
		"DNS without a forwarder": {func(p *plan.Plan) {
			p.Mode, p.Mesh.DNS = plan.NATProxy, &plan.DNS{Port: 15053}
			p.Proxy = &plan.Proxy{UID: 1500, OutboundPort: 15101, InboundPort: 15106, StatusPort: 15120}
		}, []string{"nameserver:53, UDP\n            k6t-eth0  prerouting -301     MeshVirt  ct zone set 53: zone of the guest's query\n            eth0      postrouting 100     KubeVirt  masquerade"}, []string{"15153"}},
		"native": {func(p *plan.Plan) { p.Mode, p.Mesh.DNS = plan.Native, &plan.DNS{Port: 15053} },
			[]string{"Istio     redirect to :15001", "exclusions do not hold", "ct zone set 53"}, []string{"-101", "15053"}},
		"first Istio": {func(p *plan.Plan) { p.Mesh.DialsLoopback = true }, []string{"Envoy (uid 1337) dials 127.0.0.1:80"}, nil},
		"tproxy": {func(p *plan.Plan) {
			p.Mode, p.WatchPort = plan.TProxy, 15121
			p.Proxy = &plan.Proxy{OutboundPort: 15101, InboundPort: 15106, StatusPort: 15120}
		}, []string{"tproxy ip to :15101", "redirect to :15106", "port 15021, 15120, 15121"}, []string{"redirect to :15101"}},
		"intercepted": {func(p *plan.Plan) { p.Mesh.TProxyMark, p.Inbound.ExcludePorts = 1337, []uint16{22} },
			[]string{"TPROXY to :15006", "gid 1337)", "mark 0x539", "guest, which sees peer", "the mesh must not take the port", "port 22\n"}, []string{"redirect to :15006", "127.0.0.6", "guest, which sees gateway"}},
		"intercepted, with a relay": {func(p *plan.Plan) {
			p.Mode, p.Mesh.TProxyMark, p.Proxy = plan.NATProxy, 1337, &plan.Proxy{UID: 1500, OutboundPort: 15101, InboundPort: 15106, StatusPort: 15120}
		}, []string{"redirect to :15101", "TPROXY to :15006", "dnat ip to 10.0.2.2"}, []string{"redirect to :15106"}},
		"a guest in the example peer's network": {func(p *plan.Plan) { p.Guest.IPv4 = netip.MustParseAddr("10.244.2.2") }, []string{"-> eth0 -> peer, which sees pod", "-> k6t-eth0 -> guest"}, []string{"drop: no guest may pose as its own"}},
		"several interfaces":                    {func(p *plan.Plan) { p.Interfaces = []string{"k6t-eth0", "k6t-net1"} }, []string{"k6t-eth0  prerouting -101"}, nil},
		"an IPv6 guest only":                    {func(p *plan.Plan) { p.Guest.IPv4 = netip.Addr{} }, []string{"IPv6: guest -> peer"}, []string{"IPv4", "invalid"}},
		"a long list": {func(p *plan.Plan) {
			for i := range uint16(1000) {
				p.Outbound.ExcludePorts = append(p.Outbound.ExcludePorts, 1000+i)
			}
		}, []string{"1009, and 990 more"}, []string{"1010"}},
	} {
		t.Run(name, func(t *testing.T) {
			p := base()
			c.change(&p)
			compare(t, walk.Pod{Plan: p, Observed: rules.Pod{Nameservers: nameservers}, BridgeNF: true}, c.want, c.miss)
		})
	}
	for name, c := range map[string]struct {
		ips        []netip.Prefix
		want, miss []string
	}{
		"both": {[]netip.Prefix{netip.MustParsePrefix("10.1.1.1/32"), netip.MustParsePrefix("fd00:1::1/128")}, []string{"IPv4: peer -> pod:80, TCP", "IPv6: peer -> pod:80, TCP", "IPv4, and IPv6 alike"}, nil},
		"IPv4": {[]netip.Prefix{netip.MustParsePrefix("10.1.1.1/32")}, []string{"IPv4: peer -> pod:80, TCP", "IPv4: guest -> 127.0.0.1:15000"}, []string{"IPv6"}},
		"IPv6": {[]netip.Prefix{netip.MustParsePrefix("fd00:1::1/128")}, []string{"IPv6: peer -> pod:80, TCP", "IPv6: guest -> [::1]:15000"}, []string{"IPv4"}},
		"those of the example peers": {[]netip.Prefix{netip.MustParsePrefix("10.244.2.20/32"), netip.MustParsePrefix("fd00:10:244:2::20/128")},
			[]string{"IPv4: peer -> pod:80, TCP", "IPv6: peer -> pod:80, TCP"}, []string{"pod -> pod", "peer -> peer"}},
	} {
		t.Run("a pod's addresses: "+name, func(t *testing.T) {
			compare(t, walk.Pod{Plan: base(), IPs: c.ips, BridgeNF: true}, c.want, c.miss)
		})
	}
}

func compare(t *testing.T, pod walk.Pod, want, miss []string) {
	t.Helper()
	got, err := Of(pod)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range want {
		if !strings.Contains(got, w) {
			t.Errorf("%q is missing in\n%s", w, got)
		}
	}
	for _, m := range miss {
		if strings.Contains(got, m) {
			t.Errorf("%q is not true in\n%s", m, got)
		}
	}
}

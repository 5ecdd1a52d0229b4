package netlab

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/agent"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/sidecar"
)

// relayModes have a relay, which asks the guest's DNS again.
var relayModes = []plan.Mode{plan.NATProxy, plan.TProxy}

// Flows of the guest's DNS over IPv6.
var dnsFlows6 = []Flow{
	{Name: "dns-udp6", From: Guest, Network: "dns-udp", To: at(DNSIP6, 53)},
	{Name: "dns-tcp6", From: Guest, Network: "dns-tcp", To: at(DNSIP6, 53)},
}

func wantDNS(t *testing.T, l *Lab, want map[string]string) {
	t.Helper()
	// A guest that is new looks for its gateway first, which may take it longer than until it asks again.
	if r := l.Check(t.Context(), FlowNamed("udp-out6")); !r.OK {
		t.Error(r)
	}
	for _, f := range append(slices.Clone(dnsFlows6), FlowNamed("dns-udp"), FlowNamed("dns-tcp")) {
		if r := l.Check(t.Context(), f); r.Outcome() != want[f.Name] {
			t.Errorf("%s: outcome %q, want %q", r, r.Outcome(), want[f.Name])
		}
	}
}

// everywhere is the same outcome of all DNS.
func everywhere(outcome string) map[string]string {
	return map[string]string{"dns-udp": outcome, "dns-udp6": outcome, "dns-tcp": outcome, "dns-tcp6": outcome}
}

// TestDNSByRelay has the guest's DNS in the modes with a relay: over both families, UDP and TCP. With the same
// mesh but without the forwarder, or without its process, the guest's queries are not the mesh's.
func TestDNSByRelay(t *testing.T) {
	cluster := with(everywhere("ok outbound 192.0.2.53"), map[string]string{"dns-udp": "ok 192.0.2.53", "dns-udp6": "ok 192.0.2.53"})
	for _, c := range []struct {
		name    string
		capture []string // of istio-init
		change  func(*plan.Plan)
		want    map[string]string
	}{
		{"captured", []string{"--redirect-dns"}, func(*plan.Plan) {}, everywhere("ok dns 192.0.2.153")},
		{"captured, all else excluded", []string{"--redirect-dns"}, func(p *plan.Plan) { p.Outbound = plan.Outbound{} }, everywhere("ok dns 192.0.2.153")},
		// The plan may be wrong about the mesh: a query then goes from the pod to the cluster's DNS.
		{"forwarded in vain", nil, func(*plan.Plan) {}, cluster},
		{"not captured", nil, func(p *plan.Plan) { p.Mesh.DNS, p.Proxy.DNSPort = nil, 0 }, cluster},
		{"no forwarder", []string{"--redirect-dns"}, func(p *plan.Plan) { p.Proxy.DNSPort = 0 },
			with(everywhere("ok dns 192.0.2.153"), map[string]string{"dns-udp": "ok 192.0.2.53", "dns-udp6": "ok 192.0.2.53"})},
	} {
		recordings := []string{"v1.9.0-istio-noports-dual", "v1.9.0-noistio-ports-22-80-dual"}
		if !strings.HasSuffix(c.name, "captured") {
			recordings = recordings[:1]
		}
		for _, mode := range relayModes {
			for _, kubevirt := range recordings {
				t.Run(string(mode)+"/"+c.name+"/"+kubevirt, func(t *testing.T) {
					t.Parallel()
					l := newLab(t, Options{DualStack: true, Image: dataPlane(t)})
					startIstio(t, l, "1.29.6", NFT, append(c.capture, "--dual-stack", "-c", Bridge)...)
					p := handMade(mode)
					c.change(&p)
					relay := startMeshVirt(t, l, p)
					do(t, l.KubeVirt(t.Context(), kubevirt), l.StartGuest(t.Context()))
					wantDNS(t, l, c.want)
					if c.name == "captured" {
						do(t, relay.Stop(t.Context(), 20*time.Second))
						wantDNS(t, l, everywhere("fails"))
					}
				})
			}
		}
	}
}

// TestDNSHops draws the way of the guest's queries.
func TestDNSHops(t *testing.T) {
	t.Parallel()
	l := newLab(t, Options{DualStack: true, Image: dataPlane(t)})
	startIstio(t, l, "1.29.6", NFT, "--redirect-dns", "--dual-stack", "-c", Bridge)
	startMeshVirt(t, l, handMade(plan.NATProxy))
	do(t, l.KubeVirt(t.Context(), "v1.9.0-istio-noports-dual"), l.StartGuest(t.Context()))
	for _, c := range []struct {
		flow Flow
		want string
	}{
		{FlowNamed("dns-udp"), "guest 10.0.2.2 -> k6t-eth0 -> nat-proxy :15153 (orig 10.96.0.10:53) -> sidecar :15053 (orig 10.96.0.10:53)"},
		{dnsFlows6[0], "guest fd10:0:2::2 -> k6t-eth0 -> nat-proxy :15154 (orig [fd00:10:96::a]:53) -> sidecar :15053 (orig [fd00:10:96::a]:53)"},
	} {
		if got := strings.Join(l.Check(t.Context(), c.flow).Hops, " -> "); got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", c.flow.Name, got, c.want)
		}
	}
}

// nodeLocalDNS is where a cache on the node serves, by convention (NodeLocal DNSCache).
var nodeLocalDNS = netip.MustParseAddr("169.254.20.10")

// TestNodeLocalDNS has a link-local nameserver on the node. The guest reaches its DNS, and nothing else that is
// link-local.
func TestNodeLocalDNS(t *testing.T) {
	for name, c := range map[string]struct {
		capture  []string
		dns      *plan.DNS
		udp, tcp string
	}{
		"captured":     {[]string{"--redirect-dns", "--capture-all-dns"}, &plan.DNS{Port: 15053, All: true}, "ok dns 192.0.2.153", "ok dns 192.0.2.153"},
		"not captured": {nil, nil, "ok 192.0.2.53", "ok outbound 192.0.2.53"},
	} {
		for _, mode := range relayModes {
			t.Run(string(mode)+"/"+name, func(t *testing.T) {
				t.Parallel()
				l := newLab(t, Options{Image: dataPlane(t), Nameservers: []netip.Addr{nodeLocalDNS}})
				metadata := netip.MustParseAddr("169.254.169.254")
				do(t, l.node.Do(func() error {
					return configure("lo", []string{nodeLocalDNS.String() + "/32", metadata.String() + "/32"}, nil)
				}))
				var servers []agent.Listen
				for _, network := range []string{"udp", "tcp"} {
					servers = append(servers, agent.Listen{Network: network, Addr: at(nodeLocalDNS, 53), Kind: agent.DNS, Answer: ClusterDNSAnswer})
				}
				for _, a := range []netip.AddrPort{at(metadata, 80), at(metadata, 53), at(nodeLocalDNS, 80)} {
					servers = append(servers, agent.Listen{Network: "tcp", Addr: a, Kind: agent.Echo})
				}
				do(t, l.Node.Listen(t.Context(), servers...))
				startIstio(t, l, "1.29.6", NFT, append(c.capture, "-c", Bridge)...)
				p := handMade(mode)
				p.Guest.IPv6, p.Mesh.DualStack, p.Mesh.DNS = netip.Addr{}, false, c.dns
				if c.dns == nil {
					p.Proxy.DNSPort = 0
				}
				startMeshVirt(t, l, p)
				do(t, l.KubeVirt(t.Context(), "v1.9.0-istio-noports-ipv4"), l.StartGuest(t.Context()))
				for _, x := range []struct {
					flow Flow
					want string
				}{
					{Flow{Name: "udp", From: Guest, Network: "dns-udp", To: at(nodeLocalDNS, 53)}, c.udp},
					{Flow{Name: "tcp", From: Guest, Network: "dns-tcp", To: at(nodeLocalDNS, 53)}, c.tcp},
					{Flow{Name: "another port", From: Guest, Network: "tcp", To: at(nodeLocalDNS, 80), Kind: agent.HTTP}, "fails"},
					{Flow{Name: "metadata", From: Guest, Network: "tcp", To: at(metadata, 80), Kind: agent.HTTP}, "fails"},
					{Flow{Name: "another server", From: Guest, Network: "tcp", To: at(metadata, 53), Kind: agent.HTTP}, "fails"},
					// The pod itself reaches them: it is the relay that refuses.
					{Flow{Name: "the pod's own", From: Pod, Network: "tcp", To: at(metadata, 80), Kind: agent.HTTP}, "ok outbound"},
				} {
					if r := l.Check(t.Context(), x.flow); r.Outcome() != x.want {
						t.Errorf("%s: outcome %q, want %q", r, r.Outcome(), x.want)
					}
				}
			})
		}
	}
}

// TestRelayKilled: while the relay is down nothing of the guest's TCP and DNS gets past the mesh, or in. Once the
// kubelet has started it again, all is as it was.
func TestRelayKilled(t *testing.T) {
	for _, mode := range relayModes {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			l := newLab(t, Options{DualStack: true, Image: dataPlane(t)})
			startIstio(t, l, "1.29.6", NFT, "--dual-stack", "--redirect-dns", "-c", Bridge)
			p := handMade(mode)
			relay := startMeshVirt(t, l, p)
			do(t, l.KubeVirt(t.Context(), "v1.9.0-istio-noports-dual"), l.StartGuest(t.Context()))
			wantDNS(t, l, everywhere("ok dns 192.0.2.153"))
			flows := append(slices.Clone(dnsFlows6), FlowNamed("dns-udp"), FlowNamed("egress-tcp4"), FlowNamed("egress-tcp6"),
				FlowNamed("ingress-tcp4"), FlowNamed("ingress-tcp6"))
			working := with(member, everywhere("ok dns 192.0.2.153"))
			for range 2 {
				for _, f := range flows {
					if got := l.Check(t.Context(), f).Outcome(); got != working[f.Name] {
						t.Errorf("%s, with the relay: %q, want %q", f.Name, got, working[f.Name])
					}
				}
				relay.Kill()
				for _, f := range flows {
					want := "fails"
					if strings.HasPrefix(f.Name, "ingress") {
						want = "fails " + string(sidecar.In)
					}
					if got := l.Check(t.Context(), f).Outcome(); got != want {
						t.Errorf("%s, with the relay killed: %q, want %q", f.Name, got, want)
					}
				}
				for _, name := range []string{"egress-excluded-port", "udp-out4", "udp-in4"} { // nothing of the relay's
					if got := l.Check(t.Context(), FlowNamed(name)).Outcome(); got != member[name] {
						t.Errorf("%s, with the relay killed: %q, want %q", name, got, member[name])
					}
				}
				relay = startRelay(t, l, p)
			}
		})
	}
}

package netlab

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/agent"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/kubevirt"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/sidecar"
)

// excludedCIDR6 is ExcludedCIDR's counterpart; OutsideIP6 is in it.
var excludedCIDR6 = netip.MustParsePrefix("2001:db8:113::/48")

// flows6 are those of Flows whose packets a pod of IPv6 alone can have, and, last, what a guest may try that gave itself
// an address of IPv4: KubeVirt's bridge has none there, and so no DHCP for it.
var flows6 = []Flow{
	{Name: "egress-tcp", From: Guest, Network: "tcp", To: at(PeerIP6, AppPort), Kind: agent.Echo},
	{Name: "egress-half", From: Guest, Network: "tcp", To: at(PeerIP6, AppPort), Kind: agent.Echo, Half: true},
	{Name: "egress-banner", From: Guest, Network: "tcp", To: at(PeerIP6, SSHPort), Kind: agent.Banner},
	{Name: "egress-service", From: Guest, Network: "tcp", To: at(ServiceIP6, HTTPPort), Kind: agent.HTTP},
	{Name: "egress-excluded-cidr", From: Guest, Network: "tcp", To: at(OutsideIP6, AppPort), Kind: agent.Echo},
	{Name: "egress-excluded-port", From: Guest, Network: "tcp", To: at(PeerIP6, ExcludedPort), Kind: agent.Echo},

	{Name: "ingress-listed", From: Peer, Network: "tcp", To: at(PodIP6, HTTPPort), Kind: agent.Echo},
	{Name: "ingress-other", From: Peer, Network: "tcp", To: at(PodIP6, AppPort), Kind: agent.Echo},
	{Name: "ingress-half", From: Peer, Network: "tcp", To: at(PodIP6, HTTPPort), Kind: agent.Echo, Half: true},
	{Name: "ingress-ssh", From: Peer, Network: "tcp", To: at(PodIP6, SSHPort), Kind: agent.Banner},
	{Name: "ingress-excluded", From: Peer, Network: "tcp", To: at(PodIP6, ExcludedPort), Kind: agent.Echo},
	{Name: "probe-guest", From: Node, Network: "tcp", To: at(PodIP6, HTTPPort), Kind: agent.HTTP},
	{Name: "probe-sidecar", From: Node, Network: "tcp", To: at(PodIP6, sidecar.Health), Kind: agent.HTTP},

	{Name: "udp-out", From: Guest, Network: "udp", To: at(PeerIP6, UDPPort)},
	{Name: "udp-in", From: Peer, Network: "udp", To: at(PodIP6, UDPPort)},
	{Name: "dns-udp", From: Guest, Network: "dns-udp", To: at(DNSIP6, 53)},
	{Name: "dns-tcp", From: Guest, Network: "dns-tcp", To: at(DNSIP6, 53)},
	{Name: "icmp", From: Guest, Network: "icmp", To: at(PeerIP6, 0)},

	{Name: "pod-egress", From: Pod, Network: "tcp", To: at(PeerIP6, AppPort), Kind: agent.Echo},
	{Name: "pod-self", From: Pod, Network: "tcp", To: at(PodIP6, HTTPPort), Kind: agent.Echo},
	{Name: "pod-dns", From: Pod, Network: "dns-udp", To: at(DNSIP6, 53)},
	{Name: "hairpin", From: Guest, Network: "tcp", To: at(PodIP6, HTTPPort), Kind: agent.Echo},

	{Name: "attack-gateway", From: Guest, Network: "tcp", To: at(BridgeIP6, sidecar.Health), Kind: agent.HTTP, Timeout: attackTimeout},
	{Name: "attack-pod", From: Guest, Network: "tcp", To: at(PodIP6, sidecar.Health), Kind: agent.HTTP, Timeout: attackTimeout},
	{Name: "ipv4-out", From: Guest, Network: "raw-udp", Src: at(GuestIP4, 40001), To: at(PeerIP4, UDPPort), Timeout: attackTimeout},
	{Name: "ipv4-loopback", From: Guest, Network: "raw-tcp", Src: at(GuestIP4, 40001), To: at(netip.MustParseAddr("127.0.0.1"), sidecar.Outbound), Timeout: attackTimeout},
}

// absent6 is what the guest has if its interface is excluded from the mesh and nothing has taken it over.
var absent6 = map[string]string{
	"egress-tcp":           "ok saw fd00:10:244:1::11",
	"egress-half":          "ok saw fd00:10:244:1::11",
	"egress-banner":        "ok saw fd00:10:244:1::11",
	"egress-service":       "ok saw fd00:10:244:1::11",
	"egress-excluded-cidr": "ok saw fd00:10:244:1::11",
	"egress-excluded-port": "ok saw fd00:10:244:1::11",
	"ingress-listed":       "fails inbound",
	"ingress-other":        "fails inbound",
	"ingress-half":         "fails inbound",
	"ingress-ssh":          "ok saw fd00:10:244:2::20",
	"ingress-excluded":     "fails inbound",
	"probe-guest":          "fails inbound",
	"probe-sidecar":        "ok serving",
	"udp-out":              "ok saw fd00:10:244:1::11",
	"udp-in":               "fails",
	"dns-udp":              "fails", // the answer is put into another zone than the query
	"dns-tcp":              "ok 192.0.2.53",
	"icmp":                 "ok",
	"pod-egress":           "ok outbound saw fd00:10:244:1::11",
	"pod-self":             "fails",
	"pod-dns":              "ok dns 192.0.2.153",
	"hairpin":              "fails",
	"attack-gateway":       "ok serving",
	"attack-pod":           "ok serving",
	"ipv4-out":             "fails",
	"ipv4-loopback":        "fails",
}

// native6 is what Istio's own redirect gives beside the guard.
var native6 = with(absent6, map[string]string{
	"egress-tcp":           "ok outbound saw fd00:10:244:1::11",
	"egress-half":          "ok outbound saw fd00:10:244:1::11",
	"egress-banner":        "ok outbound saw fd00:10:244:1::11",
	"egress-service":       "ok outbound saw fd00:10:244:1::11",
	"egress-excluded-cidr": "ok outbound saw fd00:10:244:1::11",
	"egress-excluded-port": "ok outbound saw fd00:10:244:1::11",
	"dns-udp":              "ok 192.0.2.53",
	"dns-tcp":              "ok outbound 192.0.2.53",
	"hairpin":              "fails outbound inbound",
	"attack-gateway":       "fails",
	"attack-pod":           "fails",
})

// rules6 is what mode rules gives: all but the guest's DNS, which it captures over IPv4 only.
var rules6 = with(native6, map[string]string{
	"egress-excluded-cidr": "ok saw fd00:10:244:1::11",
	"egress-excluded-port": "ok saw fd00:10:244:1::11",
	"ingress-listed":       "ok inbound saw fd10:0:2::1",
	"ingress-other":        "ok inbound saw fd10:0:2::1",
	"ingress-half":         "ok inbound saw fd10:0:2::1",
	"ingress-ssh":          "ok inbound saw fd10:0:2::1",
	"ingress-excluded":     "ok saw fd00:10:244:2::20",
	"probe-guest":          "ok inbound saw fd10:0:2::1",
	"udp-in":               "ok saw fd00:10:244:2::20",
	"pod-self":             "ok saw fd00:10:244:1::11",
	"hairpin":              "ok outbound inbound saw fd10:0:2::1",
})

// relayed6 is what the modes with a relay give.
var relayed6 = with(rules6, map[string]string{"dns-udp": "ok dns 192.0.2.153", "dns-tcp": "ok dns 192.0.2.153"})

// listed6 is what changes if the VMI lists ports 22 and 80 of TCP.
func listed6(want map[string]string) map[string]string {
	return with(want, map[string]string{"ingress-other": "fails inbound", "udp-in": "fails"})
}

// alone6 is a pod of IPv6 alone beside Istio, which finds that out by itself: nothing in its arguments, and so in the
// plan, says so. Without a mode MeshVirt is not there.
func alone6(t *testing.T, mode plan.Mode, istio, recording string) *Lab {
	t.Helper()
	l := newLab(t, Options{IPv6Only: true, Image: dataPlane(t)})
	do(t, l.ServeAt(OutsideIP6))
	interfaces := "-c"
	if mode == plan.Native {
		interfaces = "-k"
	}
	startIstio(t, l, istio, NFT, "--redirect-dns", interfaces, Bridge)
	if mode != "" {
		p := handMade(mode)
		p.Mesh.DualStack = false
		p.Outbound.ExcludeCIDRs = append(p.Outbound.ExcludeCIDRs, excludedCIDR6)
		p.Inbound.ExcludePorts = []uint16{ExcludedPort}
		if strings.Contains(recording, "-ports-22-80-") {
			// Who knows the cluster may say so (guest-addresses); else KubeVirt's default of IPv4 is planned in vain.
			p.Guest = plan.Guest{IPv6: GuestIP6, TCP: []plan.PortRange{plan.Port(SSHPort), plan.Port(HTTPPort)}}
		}
		startMeshVirt(t, l, p)
	}
	do(t, l.KubeVirtRules(t.Context(), kubeVirt6(t, recording)), l.StartGuest(t.Context()))
	return l
}

// kubeVirt6 are recorded rules without those of IPv4. No VMI with ports was recorded in a pod of IPv6 alone: those of a
// dual-stack one have the rules that KubeVirt makes for it as well.
func kubeVirt6(t *testing.T, recording string) string {
	t.Helper()
	rules, err := kubevirt.Rules(recording)
	do(t, err)
	_, after, ok := strings.Cut(rules, "table ip6 nat")
	if !ok {
		t.Fatalf("%s has no table ip6 nat", recording)
	}
	return "table ip6 nat" + after
}

func wantFlows6(t *testing.T, l *Lab, want map[string]string) {
	t.Helper()
	got := map[string]string{}
	for _, f := range flows6 {
		r := l.Check(t.Context(), f)
		if got[f.Name] = r.Outcome(); got[f.Name] != want[f.Name] {
			t.Log(r)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("outcomes (-want +got)\n%s", diff)
	}
}

func TestIPv6Only(t *testing.T) {
	for _, c := range []struct {
		mode            plan.Mode
		istio, kubevirt string
		want            map[string]string
		ready           []uint16 // where MeshVirt's containers say that nothing contradicts the plan
	}{
		{plan.Native, "1.29.6", "v1.9.0-istio-noports-ipv6", native6, nil},
		{plan.Rules, "1.29.6", "v1.9.0-istio-noports-ipv6", rules6, nil},
		{plan.Rules, "1.22.8", "v1.9.0-noistio-ports-22-80-dual", listed6(rules6), nil},
		{plan.NATProxy, "1.31.0-rc.0", "v1.9.0-istio-ports-22-80-dual", listed6(relayed6), []uint16{15120}},
		{plan.TProxy, "1.29.6", "v1.9.0-istio-noports-ipv6", relayed6, []uint16{15120, 15121}},
	} {
		t.Run(string(c.mode)+"/"+c.kubevirt, func(t *testing.T) {
			t.Parallel()
			l := alone6(t, c.mode, c.istio, c.kubevirt)
			wantFlows6(t, l, c.want)
			for _, port := range c.ready {
				if r := l.Check(t.Context(), Flow{Name: "readiness", From: Node, Network: "tcp", To: at(PodIP6, port), Kind: agent.HTTP, Path: "/readyz"}); !r.OK {
					t.Errorf("%s at port %d: HTTP status %d", r, port, r.Status)
				}
			}
		})
	}
}

// TestIPv6OnlyAbsent proves that TestIPv6Only fails without MeshVirt.
func TestIPv6OnlyAbsent(t *testing.T) {
	t.Parallel()
	wantFlows6(t, alone6(t, "", "1.29.6", "v1.9.0-istio-noports-ipv6"), absent6)
}

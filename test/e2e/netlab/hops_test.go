package netlab

import (
	"net/netip"
	"strings"
	"testing"
)

// TestHops has paths as the demo prints them.
func TestHops(t *testing.T) {
	t.Parallel()
	l := newLab(t, Options{DualStack: true})
	startIstio(t, l, "1.29.6", NFT, "--dual-stack", "-k", Bridge)
	do(t, l.KubeVirt(t.Context(), "v1.9.0-istio-noports-dual"), l.StartGuest(t.Context()))
	for name, want := range map[string]string{
		"egress-tcp4":    "guest 10.0.2.2 -> k6t-eth0 -> sidecar :15001 (orig 10.244.2.20:8080) -> eth0 -> peer (saw 10.244.1.17)",
		"ingress-tcp4":   "peer 10.244.2.20 -> eth0 -> sidecar :15006 (orig 10.244.1.17:80) -> k6t-eth0 -> guest (saw 10.0.2.1)",
		"ingress-ssh6":   "peer fd00:10:244:2::20 -> eth0 -> k6t-eth0 -> guest (saw fd00:10:244:2::20)",
		"ingress-tcp6":   "peer fd00:10:244:2::20 -> eth0 -> sidecar :15006 (orig [fd00:10:244:1::11]:80)",
		"probe-sidecar":  "node 10.244.1.1 -> eth0 -> sidecar :15021",
		"udp-out4":       "guest 10.0.2.2 -> k6t-eth0 -> eth0 -> peer (saw 10.244.1.17)",
		"attack-gateway": "guest 10.0.2.2 -> k6t-eth0 -> sidecar :15001 (orig 10.0.2.1:15021) -> sidecar :15006 (orig 10.0.2.1:15021) -> sidecar :15021",
	} {
		if got := strings.Join(l.Check(t.Context(), FlowNamed(name)).Hops, " -> "); got != want {
			t.Errorf("%s:\n got %s\nwant %s", name, got, want)
		}
	}
}

// TestHopsAgain has connections between the same addresses and ports as earlier ones: the sidecar has few to dial from.
func TestHopsAgain(t *testing.T) {
	t.Parallel()
	l := newLab(t, Options{})
	do(t, l.Namespace().Sysctl("ipv4/ip_local_port_range", "40000 40001"))
	startIstio(t, l, "1.29.6", NFT, "-k", Bridge)
	do(t, l.KubeVirt(t.Context(), "v1.9.0-istio-noports-ipv4"), l.StartGuest(t.Context()))
	const want = "peer 10.244.2.20 -> eth0 -> sidecar :15006 (orig 10.244.1.17:80) -> k6t-eth0 -> guest (saw 10.0.2.1)"
	dialled := map[netip.AddrPort]int{}
	for range 5 {
		r := l.Check(t.Context(), FlowNamed("ingress-tcp4"))
		if got := strings.Join(r.Hops, " -> "); got != want {
			t.Fatalf("%s\n got %s\nwant %s", r, got, want)
		}
		dialled[r.Sidecar[0].Local]++
	}
	if len(dialled) > 2 {
		t.Errorf("the sidecar dialled from %v, want two ports", dialled)
	}
}

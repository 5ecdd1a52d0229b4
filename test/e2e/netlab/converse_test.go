package netlab

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/agent"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/sidecar"
)

// A packet tells who hears a guest, a conversation who answers it: a proxy that dials for it is heard
// only then. The guest's kernel would not dial some destinations, so that others are disguised as those
// on the guest's cable.

// calls are HTTP requests of the guest's to what it must not reach, by where they go on the cable.
func calls(mode plan.Mode) (all []netip.AddrPort) {
	for _, a := range addrs("127.0.0.1", "127.0.0.6", "::6", "0.0.0.0", "::", "::ffff:127.0.0.1", "::ffff:10.244.1.17") {
		all = append(all, at(a, sidecar.Admin), at(a, sidecar.Health))
	}
	for _, a := range []netip.Addr{BridgeIP4, BridgeIP6, PodIP4, PodIP6} {
		ports := istioPorts
		if slices.Contains(relaying, mode) {
			ports = append(slices.Clone(ports), relayPorts...)
		}
		for _, port := range ports {
			all = append(all, at(a, port))
		}
	}
	return all
}

// disguise makes the guest's kernel believe that it talks to somebody else, and gives whom to dial.
func disguise(t *testing.T, l *Lab, all []netip.AddrPort) map[netip.AddrPort]netip.AddrPort {
	t.Helper()
	var out, back strings.Builder
	aliases := map[netip.Addr]netip.Addr{}
	dial := map[netip.AddrPort]netip.AddrPort{}
	for _, to := range all {
		a := to.Addr()
		if !slices.Contains([]netip.Addr{BridgeIP4, BridgeIP6, PodIP4, PodIP6}, a) && !aliases[a].IsValid() {
			alias, family := fmt.Sprintf("203.0.113.%d", len(aliases)+1), "ip"
			if a.Is6() {
				alias, family = fmt.Sprintf("2001:db8::%d", len(aliases)+1), "ip6"
			}
			aliases[a] = netip.MustParseAddr(alias)
			fmt.Fprintf(&out, "%s daddr %s %s daddr set %s\n", family, alias, family, a)
			fmt.Fprintf(&back, "%s saddr %s %s saddr set %s\n", family, a, family, alias)
		}
		dial[to] = to
		if aliases[a].IsValid() {
			dial[to] = at(aliases[a], to.Port())
		}
	}
	nft := fmt.Sprintf("table netdev disguise {\nchain out {\ntype filter hook egress device eth0 priority 0\n%s}\nchain back {\ntype filter hook ingress device eth0 priority 0\n%s}\n}\n", &out, &back)
	_, err := runIn(t.Context(), l.guest, nft, "nft", "-f", "-")
	do(t, err)
	return dial
}

// answerTimeout is for what must be answered, on a busy machine too.
const answerTimeout = 10 * time.Second

func call(t *testing.T, l *Lab, to netip.AddrPort, timeout time.Duration) (agent.Dialed, error) {
	return l.Guest.Dial(t.Context(), agent.Dial{Network: "tcp", To: to, Kind: agent.HTTP, Timeout: timeout})
}

// converse makes all calls at once, and tells which were answered, and what the mesh's proxy was asked for.
func converse(t *testing.T, l *Lab, dial map[netip.AddrPort]netip.AddrPort) (answered, asked []string) {
	t.Helper()
	before, err := l.SidecarEvents(t.Context())
	do(t, err)
	var mu sync.Mutex
	var all sync.WaitGroup
	for to, by := range dial {
		all.Go(func() {
			d, err := call(t, l, by, attackTimeout)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Error(err)
			}
			if d.OK {
				answered = append(answered, to.String())
			}
		})
	}
	all.Wait()
	after, err := l.SidecarEvents(t.Context())
	do(t, err)
	for _, e := range after[len(before):] {
		if e.Direction == sidecar.Serving || e.Direction == sidecar.DNS || e.Err == "" {
			asked = append(asked, fmt.Sprintf("%s :%d", e.Direction, e.Port))
		}
	}
	slices.Sort(answered)
	slices.Sort(asked)
	return answered, slices.Compact(asked)
}

// answersBare are some calls that are answered without the guard, by mode and mode of KubeVirt's: what the
// relay refuses too, and what KubeVirt's plain mode has for the guest (127.0.0.1), is not among them.
func answersBare(mode plan.Mode, kubevirt string) []string {
	admin := []string{"127.0.0.1:15000", "0.0.0.0:15000", "[::]:15000", "[::ffff:127.0.0.1]:15000"}
	relay := []string{"10.0.2.1:15120", "[fd10:0:2::1]:15120", "[fd00:10:244:1::11]:15120"}
	want := []string{
		"10.0.2.1:15008", "10.0.2.1:15020", "10.0.2.1:15021", "10.0.2.1:15090", "[fd10:0:2::1]:15021",
		"[fd00:10:244:1::11]:15008", "[fd00:10:244:1::11]:15020", "[fd00:10:244:1::11]:15021", "[fd00:10:244:1::11]:15090",
	}
	switch mode {
	case plan.Ambient:
		return []string{"10.0.2.1:15008", "10.244.1.17:15008", "[fd10:0:2::1]:15008", "[fd00:10:244:1::11]:15008"}
	case plan.NATProxy, plan.TProxy:
		want, admin = append(want, relay...), admin[:1]
	}
	if kubevirt == "istio mode" {
		want = append(want, admin...)
	}
	return want
}

package main

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/meshvirt/meshvirt/test/e2e/netlab"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/agent"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/kubevirt"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/sidecar"
)

// TestEveryRowDecides: no row of the table of wants is dead, and each says why.
func TestEveryRowDecides(t *testing.T) {
	_, all := embedded(t)
	old := ipv6Only(all)[0]
	old.told.Virtual4 = true // as Istio 1.11, of which the lab has no recordings
	all = append(all, old)
	used := make([]int, len(wants))
	for _, s := range all {
		for _, mode := range s.modes() {
			for _, f := range s.flows() {
				if i := rowOf(cell{s, f, mode}); i >= 0 {
					used[i]++
				}
			}
		}
	}
	for i, r := range wants {
		if used[i] == 0 {
			t.Errorf("no cell of %s is decided by: %s, %s", r.flows, r.want, r.why)
		}
		if r.why == "" || strings.Contains(r.why, "|") {
			t.Errorf("row %d, %s: reason %q, want one without bars", i, r.flows, r.why)
		}
	}
}

// TestGot has results that must not be taken for what some mode promises.
func TestGot(t *testing.T) {
	from := func(h netlab.Host, network string) flow {
		return flow{"x", "ipv4", netlab.Flow{From: h, Network: network}}
	}
	saw := func(s string) netip.AddrPort { return netip.AddrPortFrom(netip.MustParseAddr(s), 1) }
	via := func(d ...sidecar.Direction) []sidecar.Direction { return d }
	for i, c := range []struct {
		flow   flow
		result netlab.Result
		want   string
	}{
		{from(netlab.Guest, "tcp"), netlab.Result{Err: errors.New("x")}, refused},
		{from(netlab.Guest, "tcp"), netlab.Result{Err: fmt.Errorf("agent: %w", agent.ErrNoAnswer)}, unknown},
		{from(netlab.Guest, "tcp"), netlab.Result{OK: true, PeerSaw: saw("10.244.1.17")}, direct},
		{from(netlab.Guest, "tcp"), netlab.Result{OK: true, PeerSaw: saw("10.0.2.2")}, "direct, from 10.0.2.2"},
		{from(netlab.Guest, "tcp"), netlab.Result{OK: true, PeerSaw: saw("10.244.1.17"), Via: via(sidecar.Out)}, meshed},
		{from(netlab.Guest, "tcp"), netlab.Result{OK: true, PeerSaw: saw("10.244.1.17"), Via: via(sidecar.In)}, "ok inbound saw 10.244.1.17"},
		{from(netlab.Guest, "tcp"), netlab.Result{OK: true, PeerSaw: saw("10.244.1.17"), Via: via(sidecar.Out, sidecar.Out)}, "ok outbound outbound saw 10.244.1.17"},
		{from(netlab.Guest, "tcp"), netlab.Result{OK: true, GuestSaw: saw("10.0.2.1"), Via: via(sidecar.Out, sidecar.In)}, twice},
		{from(netlab.Peer, "tcp"), netlab.Result{OK: true, GuestSaw: saw("10.0.2.1"), Via: via(sidecar.In)}, meshed},
		{from(netlab.Peer, "tcp"), netlab.Result{OK: true, GuestSaw: saw("10.244.2.20"), Via: via(sidecar.In)}, known},
		{from(netlab.Peer, "tcp"), netlab.Result{OK: true, GuestSaw: saw("10.0.2.1"), Via: via(sidecar.Out)}, "ok outbound saw 10.0.2.1"},
		{from(netlab.Peer, "tcp"), netlab.Result{OK: true, PodSaw: saw("10.244.2.20")}, inPod},
		{from(netlab.Node, "tcp"), netlab.Result{OK: true, Via: via(sidecar.Serving)}, answered},
		{from(netlab.Node, "tcp"), netlab.Result{OK: true, Via: via(sidecar.Serving), GuestSaw: saw("10.0.2.1")}, probed},
		{from(netlab.Guest, "dns-udp"), netlab.Result{OK: true, Answer: "192.0.2.153", Via: via(sidecar.DNS)}, captured},
		{from(netlab.Guest, "dns-udp"), netlab.Result{OK: true, Answer: "192.0.2.53"}, direct},
		{from(netlab.Guest, "dns-tcp"), netlab.Result{OK: true, Answer: "192.0.2.53", Via: via(sidecar.Out)}, meshed},
		{from(netlab.Guest, "dns-udp"), netlab.Result{OK: true, Answer: "192.0.2.99"}, "answer 192.0.2.99"},
		{from(netlab.Guest, "raw-udp"), netlab.Result{OK: true, PeerSaw: saw("10.0.2.77")}, "gets through"},
	} {
		c.result.Flow = c.flow.Flow
		if got := gotOf(c.flow, c.result, false); got != c.want {
			t.Errorf("%d: got %q, want %q", i, got, c.want)
		}
	}
}

// TestReaddressed: a recorded pod may have had other addresses than the lab's.
func TestReaddressed(t *testing.T) {
	to := map[string]netip.Addr{"10.1.1.1": netlab.PodIP4, "fd01::1": netlab.PodIP6}
	got := readdress("ip daddr { 10.1.1.1, 10.1.1.17 } dnat to 110.1.1.1\nip6 daddr fd01::1 -d 10.1.1.1/32", to)
	if want := "ip daddr { 10.244.1.17, 10.1.1.17 } dnat to 110.1.1.1\nip6 daddr fd00:10:244:1::11 -d 10.244.1.17/32"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	c, _ := embedded(t)
	vmis, err := c.kubevirt.Cases()
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(vmis, func(k kubevirt.Case) bool { return k.PodIP["v4"] != "" })
	same, err := c.kubevirtRules(vmis[i])
	if err != nil {
		t.Fatal(err)
	}
	if recorded, _ := c.kubevirt.Rules(vmis[i].Name); same != recorded {
		t.Errorf("rules with the lab's own addresses were changed to\n%s", same)
	}
}

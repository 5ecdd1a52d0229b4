package keeper

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meshvirt/meshvirt/pkg/bridge"
	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/resolv"
	"github.com/meshvirt/meshvirt/pkg/rules"
	"github.com/meshvirt/meshvirt/test/lab"
)

// A keeper is Keep at work in a namespace.
type keeper struct {
	testing.TB
	lab.Netns
	reports chan Written
}

// examplePlan is of mode tproxy, for a mesh of both families.
func examplePlan() plan.Plan {
	return plan.Plan{
		Mode: plan.TProxy, Interfaces: []string{"k6t-eth0"}, PodInterface: "eth0",
		Guest:    plan.Guest{IPv4: netip.MustParseAddr("10.0.2.2"), IPv6: netip.MustParseAddr("fd10:0:2::2")},
		Mesh:     plan.Mesh{OutboundPort: 15001, InboundPort: 15006, UID: 1337, GID: 1337, OwnPorts: []uint16{15008, 15020, 15021, 15090}, DualStack: true},
		Outbound: plan.Outbound{All: true},
		Inbound:  plan.Inbound{All: true},
		Proxy:    &plan.Proxy{OutboundPort: 15101, InboundPort: 15106, StatusPort: 15120}, WatchPort: 15121,
	}
}

// startKeep runs Keep until the test ends, with or without capabilities.
func startKeep(t *testing.T, capable bool, change ...func(*plan.Plan)) keeper {
	t.Helper()
	k := keeper{t, lab.NewNetns(t), make(chan Written, 100)}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() {
		ended <- k.Do(0, func() error {
			if !capable {
				var none [2]unix.CapUserData
				if err := unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0]); err != nil {
					return err
				}
			}
			p := examplePlan()
			for _, f := range change {
				f(&p)
			}
			Keep(ctx, p, resolv.Conf, func(w Written) { k.reports <- w })
			return nil
		})
	}()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(20 * time.Second):
			t.Error("Keep does not end with its context")
		}
	})
	return k
}

// until gives the next report that fits.
func (k keeper) until(what string, fits func(Written) bool) Written {
	k.Helper()
	deadline := time.After(20 * time.Second)
	for {
		select {
		case w := <-k.reports:
			if fits(w) {
				return w
			}
		case <-deadline:
			k.Fatalf("no report of %s", what)
		}
	}
}

// policy is the policy route as ip(8) shows it, of both families.
func (k keeper) policy() string {
	var out strings.Builder
	for _, family := range []string{"-4", "-6"} {
		out.WriteString(k.Run(k.TB, "", "ip", family, "rule"))
		out.WriteString(k.Run(k.TB, "", "ip", family, "route", "show", "table", "all", "type", "local"))
	}
	return out.String()
}

// complete checks that all is there once.
func (k keeper) complete() {
	k.Helper()
	policy := k.policy()
	if n := strings.Count(policy, "fwmark 0x20000/0x20000 lookup 15101"); n != 2 {
		k.Errorf("%d rules lead to our table, want one of each family:\n%s", n, policy)
	}
	if n := strings.Count(policy, "local default dev lo table 15101"); n != 2 {
		k.Errorf("%d routes in our table, want one of each family:\n%s", n, policy)
	}
	if table := k.Table(k.TB, rules.Table); !strings.Contains(table, "tproxy ip6 to :15101") {
		k.Errorf("the table lacks tproxy:\n%s", table)
	}
}

func TestKeep(t *testing.T) {
	k := startKeep(t, true)
	ip := func(args ...string) { k.Helper(); k.Run(t, "", append([]string{"ip"}, args...)...) }
	ip("link", "set", "lo", "up")
	w := k.until("the first attempt that works", func(w Written) bool { return w.Err == nil })
	if w.Present || w.Rules.Rules() == 0 {
		t.Errorf("first report: present %t, %d rules; want rules before there is an interface", w.Present, w.Rules.Rules())
	}
	if policy := k.policy(); strings.Contains(policy, "15101") {
		t.Errorf("a policy route before there is an interface:\n%s", policy)
	}

	present := func(w Written) bool { return w.Present && w.Err == nil }
	ip("link", "add", "k6t-eth0", "type", "bridge")
	k.until("the interface", present)
	k.complete()

	// Somebody takes everything away; the next bridge brings it back.
	k.Run(t, "", "nft", "flush", "ruleset")
	ip("-4", "rule", "del", "priority", "15101")
	ip("-6", "route", "flush", "table", "15101")
	ip("link", "del", "k6t-eth0")
	ip("link", "add", "k6t-eth0", "type", "bridge")
	k.until("the interface that came again", present)
	k.complete()

	// Any link that becomes the interface counts.
	ip("link", "del", "k6t-eth0")
	ip("link", "add", "x", "type", "veth", "peer", "name", "y")
	k.Run(t, "", "nft", "flush", "ruleset")
	ip("link", "set", "x", "name", "k6t-eth0")
	k.until("the renamed interface", present)
	k.complete()
}

// TestKeepSettles takes what is found in the place of what is assumed, and tells of what it cannot settle. Nothing is
// written where nothing changes.
func TestKeepSettles(t *testing.T) {
	k := startKeep(t, true, func(p *plan.Plan) {
		p.Mode, p.Proxy, p.Assumed = plan.Rules, nil, plan.Assumed{Interfaces: true, Guest: true}
	})
	ip := func(args ...string) { k.Helper(); k.Run(t, "", append([]string{"ip"}, args...)...) }
	has := func(words ...string) {
		t.Helper()
		table := k.Table(t, rules.Table)
		for _, w := range words {
			if !strings.Contains(table, w) {
				t.Errorf("the table lacks %q:\n%s", w, table)
			}
		}
	}
	settled := func(w Written) bool { return w.Err == nil && w.Present && w.Plan.Interfaces[0] == "k6t-ovn-udn1" }
	k.until("the first attempt", func(w Written) bool { return w.Err == nil })
	has(`iifname "k6t-eth0"`, `iifname "eth0"`, "dnat ip to 10.0.2.2 ")

	ip("link", "add", "k6t-ovn-udn1", "type", "bridge")
	ip("addr", "add", "10.11.12.1/24", "dev", "k6t-ovn-udn1")
	k.until("the bridge", settled)
	has(`iifname "k6t-ovn-udn1"`, `iifname "ovn-udn1"`, "dnat ip to 10.11.12.2 ", "dnat ip6 to fd10:0:2::2 ")
	ip("addr", "add", "fd20::1/120", "dev", "k6t-ovn-udn1", "nodad")
	k.until("IPv6", func(w Written) bool { return settled(w) && w.Plan.Guest.IPv6.String() == "fd20::2" })
	has("dnat ip to 10.11.12.2 ", "dnat ip6 to fd20::2 ")

	ip("link", "add", "k6t-net1", "type", "bridge")
	ip("addr", "add", "10.99.0.1/24", "dev", "k6t-net1")
	k.until("two bridges", func(w Written) bool {
		return w.Err == nil && len(w.Contradictions) == 1 && w.Contradictions[0].What == bridge.Bridges
	})
	has(`iifname "k6t-ovn-udn1"`, "dnat ip to 10.11.12.2 ")
	ip("link", "del", "k6t-net1")
	k.until("one bridge", func(w Written) bool { return settled(w) && len(w.Contradictions) == 0 })

	// What does not matter is not written for: no report comes before that of the bridge.
	ip("link", "add", "x", "type", "veth", "peer", "name", "y")
	ip("addr", "add", "10.0.2.1/24", "dev", "x")
	ip("link", "del", "k6t-ovn-udn1")
	ip("link", "add", "k6t-ovn-udn1", "type", "bridge")
	w := k.until("any attempt", func(Written) bool { return true })
	if !settled(w) || w.Plan.Guest.IPv4.String() != "10.11.12.2" {
		t.Errorf("next report %+v, want that of the bridge that came back", w.Settled)
	}
	has(`iifname "k6t-ovn-udn1"`, "dnat ip to 10.11.12.2 ")
}

// TestKeepGoesOn reports an attempt that failed, and tries again.
func TestKeepGoesOn(t *testing.T) {
	k := startKeep(t, false)
	for range 2 {
		w := k.until("an attempt", func(Written) bool { return true })
		if w.Err == nil || !strings.Contains(w.Err.Error(), "NET_ADMIN") {
			t.Errorf("got %v, want an error that names NET_ADMIN", w.Err)
		}
	}
}

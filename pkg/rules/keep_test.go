package rules

import (
	"context"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/resolv"
)

// A keeper is Keep at work in a namespace.
type keeper struct {
	testing.TB
	netns
	reports chan Written
}

// startKeep runs Keep until the test ends, with or without capabilities.
func startKeep(t *testing.T, capable bool) keeper {
	t.Helper()
	k := keeper{t, newNetns(t), make(chan Written, 100)}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() {
		ended <- k.do(0, func() error {
			if !capable {
				var none [2]unix.CapUserData
				if err := unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0]); err != nil {
					return err
				}
			}
			p := examplePlan(plan.TProxy)
			p.Mesh.DualStack = true
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
		out.WriteString(k.run(k.TB, "", "ip", family, "rule"))
		out.WriteString(k.run(k.TB, "", "ip", family, "route", "show", "table", "all", "type", "local"))
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
	if table := k.list(k.TB); !strings.Contains(table, "tproxy ip6 to :15101") {
		k.Errorf("the table lacks tproxy:\n%s", table)
	}
}

func TestKeep(t *testing.T) {
	k := startKeep(t, true)
	ip := func(args ...string) { k.Helper(); k.run(t, "", append([]string{"ip"}, args...)...) }
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
	k.run(t, "", "nft", "flush", "ruleset")
	ip("-4", "rule", "del", "priority", "15101")
	ip("-6", "route", "flush", "table", "15101")
	ip("link", "del", "k6t-eth0")
	ip("link", "add", "k6t-eth0", "type", "bridge")
	k.until("the interface that came again", present)
	k.complete()

	// Any link that becomes the interface counts.
	ip("link", "del", "k6t-eth0")
	ip("link", "add", "x", "type", "veth", "peer", "name", "y")
	k.run(t, "", "nft", "flush", "ruleset")
	ip("link", "set", "x", "name", "k6t-eth0")
	k.until("the renamed interface", present)
	k.complete()
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

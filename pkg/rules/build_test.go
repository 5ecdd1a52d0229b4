package rules

import (
	"errors"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/meshvirt/meshvirt/pkg/plan"
)

func TestBuildRefusesAnInvalidPlan(t *testing.T) {
	p := examplePlan(plan.Rules)
	p.Mesh.OutboundPort = 0
	if _, err := Build(p, Pod{}); err == nil || !strings.Contains(err.Error(), "mesh.outboundPort") {
		t.Errorf("got %v, want an error that names mesh.outboundPort", err)
	}
	p.Mode = plan.Auto
	if _, err := Build(p, Pod{}); err == nil {
		t.Error("mode auto: want an error")
	}
}

// TestEveryModeOfAPlanIsKnown fails if a mode is added to plans but not here.
func TestEveryModeOfAPlanIsKnown(t *testing.T) {
	for _, m := range plan.Modes {
		if p := examplePlan(m); p.Validate() == nil && modes[m] == nil {
			t.Errorf("no rules are known for mode %q", m)
		}
	}
}

func TestBuildIsPure(t *testing.T) {
	forEachPlan(t, func(t *testing.T, p plan.Plan, pod Pod) {
		before, err := p.Encode()
		if err != nil {
			t.Fatal(err)
		}
		a, b := build(t, p, pod).String(), build(t, p, pod).String()
		if diff := cmp.Diff(a, b); diff != "" {
			t.Errorf("two builds differ:\n%s", diff)
		}
		if after, _ := p.Encode(); after != before {
			t.Errorf("the plan was changed from\n%s\nto\n%s", before, after)
		}
	})
}

// TestReasons: nft takes comments of up to 128 bytes, and has no escapes in them.
func TestReasons(t *testing.T) {
	forEachPlan(t, func(t *testing.T, p plan.Plan, pod Pod) {
		r := build(t, p, pod)
		var reasons []string
		for _, s := range r.sets {
			reasons = append(reasons, s.why)
		}
		for _, c := range r.chains {
			for _, x := range c.rules {
				reasons = append(reasons, x.why)
			}
		}
		for _, why := range reasons {
			if why == "" || len(why) > 128 || strings.ContainsAny(why, `"\`) {
				t.Errorf("reason %q: want 1 to 128 characters without quotes and backslashes", why)
			}
		}
	})
}

func TestNativeIsTheGuardAlone(t *testing.T) {
	for _, c := range build(t, examplePlan(plan.Native), Pod{}).chains {
		if !strings.Contains(c.name, "guard") && c.name != "guest_to_pod" {
			t.Errorf("mode native has chain %s, want the guard's only", c.name)
		}
	}
}

// TestProbed: our own containers' ports are kept from the mesh, in mode native too.
func TestProbed(t *testing.T) {
	for _, mode := range []plan.Mode{plan.Native, plan.Rules, plan.NATProxy, plan.TProxy, plan.Ambient} {
		for _, watched := range []bool{false, true} {
			p := examplePlan(mode)
			if watched {
				p.WatchPort = 15121
			}
			text := build(t, p, Pod{}).String()
			if want := p.WatchPort != 0 || p.Proxy != nil; strings.Contains(text, "chain probed {") != want {
				t.Errorf("%s, watched %t: want the chain %t:\n%s", mode, watched, want, text)
			}
		}
	}
}

// TestSets compares the sets' text for ranges that touch, overlap and end at the edges.
func TestSets(t *testing.T) {
	tests := []struct {
		name string
		set  *set
		want string
	}{
		{"overlap", newPrefixSet("x", "-", prefixes("10.0.0.0/8", "10.1.0.0/16", "10.2.3.4/32")...), "10.0.0.0/8"},
		{"adjacent", newPrefixSet("x", "-", prefixes("10.0.0.0/24", "10.0.1.0/24", "10.0.2.0/24")...), "10.0.0.0-10.0.2.255"},
		{"everything", newPrefixSet("x", "-", prefixes("0.0.0.0/1", "128.0.0.0/1")...), "0.0.0.0/0"},
		{"last address", newPrefixSet("x", "-", prefixes("255.255.255.255/32")...), "255.255.255.255"},
		{"IPv6", newPrefixSet("x", "-", prefixes("::/0", "fd00::/8")...), "::/0"},
		{"ports", newPortSet("x", "-", portTableOf([]uint16{65535, 65534, 1, 80, 0}).add([]plan.PortRange{{First: 81, Last: 90}})), "1, 80-90, 65534-65535"},
		{"ports without some", newPortSet("x", "-", portTableOf().add([]plan.PortRange{{First: 1, Last: 65535}}).without(portTableOf([]uint16{22, 65535}))), "1-21, 23-65534"},
	}
	for _, test := range tests {
		if got := test.set.String(); !strings.Contains(got, "elements = { "+test.want+" }\n") {
			t.Errorf("%s: got\n%s\nwant the elements %s", test.name, got, test.want)
		}
	}
	for name, s := range map[string]*set{"no prefix": newPrefixSet("x", "-"), "no port": newPortSet("x", "-", portTableOf([]uint16{0}))} {
		if !s.empty() {
			t.Errorf("%s: got %s, want an empty set", name, s)
		}
	}
}

// TestRuleThatCannotMatch: it is left out, and so is a match that is always true.
func TestRuleThatCannotMatch(t *testing.T) {
	c := &chain{}
	c.add("-", tcpDport.in(nil), accept)
	c.add("-", ipv6.dnat(netip.Addr{}))
	c.add("-", ipv4.daddr.is(address(netip.Addr{})), accept)
	if len(c.rules) != 0 {
		t.Errorf("got %v, want no rule", c.rules)
	}
	c.add("-", tcpDport.notIn(nil), accept)
	if want := `accept comment "-"`; len(c.rules) != 1 || c.rules[0].String() != want {
		t.Errorf("got %v, want %s", c.rules, want)
	}
}

func TestApplyWithoutPrivilege(t *testing.T) {
	r := build(t, examplePlan(plan.Rules), Pod{})
	ns := newNetns(t)
	err := ns.do(0, func() error {
		none := [2]unix.CapUserData{}
		if err := unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0]); err != nil {
			return err
		}
		return r.Apply()
	})
	if !errors.Is(err, os.ErrPermission) || !strings.Contains(err.Error(), "NET_ADMIN") {
		t.Errorf("got %v, want an error that names NET_ADMIN", err)
	}
}

// TestApplyIsAtomic: a ruleset that the kernel refuses leaves the table as it was.
func TestApplyIsAtomic(t *testing.T) {
	ns := newNetns(t)
	good := build(t, examplePlan(plan.Rules), Pod{})
	if err := good.Apply(nftables.WithNetNSFd(int(ns.Fd()))); err != nil {
		t.Fatal(err)
	}
	before := ns.list(t)
	bad := build(t, examplePlan(plan.NATProxy), Pod{})
	last := bad.chains[len(bad.chains)-1]
	last.add("a jump to a chain that is not there", jump(&chain{name: "nowhere"}))
	if err := bad.Apply(nftables.WithNetNSFd(int(ns.Fd()))); err == nil {
		t.Fatal("the kernel took a jump to a chain that is not there")
	}
	if diff := cmp.Diff(before, ns.list(t)); diff != "" {
		t.Errorf("the table changed (-before +after):\n%s", diff)
	}
}

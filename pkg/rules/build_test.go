package rules

import (
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

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
	comment := regexp.MustCompile(`comment (".*")
`)
	forEachPlan(t, func(t *testing.T, p plan.Plan, pod Pod) {
		r := build(t, p, pod)
		reasons := comment.FindAllStringSubmatch(r.String(), -1)
		if len(reasons) < r.Rules() {
			t.Errorf("%d comments of %d rules", len(reasons), r.Rules())
		}
		for _, m := range reasons {
			why, err := strconv.Unquote(m[1])
			if err != nil || why == "" || len(why) > 128 || strings.ContainsAny(why, `"\`) {
				t.Errorf("reason %s: want 1 to 128 characters without quotes and backslashes", m[1])
			}
		}
	})
}

func TestNativeIsTheGuardAlone(t *testing.T) {
	for _, c := range build(t, examplePlan(plan.Native), Pod{}).Chains() {
		if !strings.HasPrefix(c.Name, "guard_") && !strings.HasPrefix(c.Name, "guest_") {
			t.Errorf("mode native has chain %s, want the guard's only", c.Name)
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

package rules

import (
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/meshvirt/meshvirt/pkg/plan"
)

// TestChains: what readers are shown is what nft lists, and every rule does something.
func TestChains(t *testing.T) {
	forEachPlan(t, func(t *testing.T, p plan.Plan, pod Pod) {
		r := build(t, p, pod)
		text, n := r.String(), 0
		for _, c := range r.Chains() {
			if !strings.Contains(text, "chain "+c.Name+" {\n") {
				t.Errorf("nft lists no chain %s", c.Name)
			}
			for _, x := range c.Rules {
				n++
				if !strings.Contains(text, fmt.Sprintf("\t%s comment %q\n", x.Text(), x.Why)) {
					t.Errorf("nft lists no rule %q, %q", x.Text(), x.Why)
				}
				if x.Action() == "" || !strings.HasSuffix(x.Text(), x.Action()) || len(x.Exprs()) == 0 {
					t.Errorf("rule %q: action %q and %d expressions", x.Text(), x.Action(), len(x.Exprs()))
				}
			}
		}
		if n != r.Rules() {
			t.Errorf("%d rules are shown, of %d", n, r.Rules())
		}
	})
}

func TestChainsPlaces(t *testing.T) {
	want := map[string]string{
		"guard_addresses": "prerouting false -301", "prerouting": "prerouting true -101", "output": "output true -101",
		"postrouting": "postrouting true 99", "proxy_forward": "forward false 0", "proxy_bridged": fmt.Sprint("prerouting false ", math.MinInt32),
	}
	for _, c := range build(t, examplePlan(plan.TProxy), dualPod).Chains() {
		got := ""
		if c.Base != nil {
			got = fmt.Sprintf("%s %t %d", c.Base.Hook, c.Base.NAT, c.Base.Priority)
		}
		if w, ok := want[c.Name]; ok && w != got {
			t.Errorf("chain %s is at %q, want %q", c.Name, got, w)
		}
		delete(want, c.Name)
	}
	if len(want) > 0 {
		t.Errorf("no chains %v", want)
	}
}

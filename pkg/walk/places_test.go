package walk

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/meshvirt/meshvirt/pkg/nft"
	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/rules"
)

// Places is the table of all chains in the order in which they are called, for docs/datapath.md.
func Places(t *testing.T) string {
	type place struct {
		hook       nft.Hook
		at, prio   int32
		who, chain string
	}
	var order []place
	modes := map[place][]string{}
	hooks := []nft.Hook{nft.Prerouting, nft.Forward, nft.Output, nft.Postrouting}
	for _, name := range []string{"native", "rules", "nat-proxy", "tproxy", "ambient", "intercepted"} {
		pod := SamplePod(plan.Mode(name))
		if name == "intercepted" {
			pod = SamplePod(plan.Rules)
			pod.Plan.Mesh.TProxyMark = 1337
		}
		table, err := rules.Build(pod.Plan, pod.Observed)
		if err != nil {
			t.Fatal(err)
		}
		w := newWorld(pod, table, 0)
		for _, hook := range hooks {
			for _, s := range w.stops(hook) {
				p := place{hook: hook, at: s.at, prio: s.priority, who: s.who}
				if s.chain != nil {
					p.chain = s.chain.Name
				}
				if !slices.Contains(order, p) {
					order = append(order, p)
				}
				modes[p] = append(modes[p], name)
			}
		}
	}
	slices.SortStableFunc(order, func(a, b place) int {
		if a.hook != b.hook {
			return slices.Index(hooks, a.hook) - slices.Index(hooks, b.hook)
		}
		if a.at != b.at {
			return int(int64(a.at)/2 - int64(b.at)/2)
		}
		return int(a.prio - b.prio)
	})
	var b strings.Builder
	b.WriteString("| hook | priority | whose | chain | where |\n|---|---|---|---|---|\n")
	for _, p := range order {
		where := strings.Join(modes[p], ", ")
		if len(modes[p]) == 6 {
			where = "everywhere"
		}
		fmt.Fprintf(&b, "| %s | %d | %s | %s | %s |\n", p.hook, p.prio, p.who, p.chain, where)
	}
	return b.String()
}

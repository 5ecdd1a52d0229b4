package walk

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/meshvirt/meshvirt/pkg/nft"
	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/rules"
)

var update = flag.Bool("update", false, "write the drawings of docs/datapath.md again")

// The drawings of docs/datapath.md are made from the rules by `make golden`; the text around them is not.
func TestWaysAreDocumented(t *testing.T) {
	const file = "../../docs/datapath.md"
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	want := string(b)
	fill := func(block, text string) {
		begin, end := "<!-- "+block+": made by pkg/walk, by make golden -->\n", "<!-- end of "+block+" -->\n"
		head, rest, ok1 := strings.Cut(want, begin)
		_, tail, ok2 := strings.Cut(rest, end)
		if !ok1 || !ok2 {
			t.Fatalf("%s lacks the lines %q and %q", file, begin, end)
		}
		want = head + begin + text + end + tail
	}
	fill("places", places(t))
	for _, mode := range []plan.Mode{plan.Native, plan.Rules, plan.NATProxy, plan.TProxy, plan.Ambient} {
		fill(string(mode), paragraphs(t, examplePod(mode), "egress", "excluded", "ingress", "port 22", "own", "tunnel", "probe", "UDP in", "DNS"))
	}
	intercepted := examplePod(plan.Rules)
	intercepted.Plan.Mesh.TProxyMark = 1337
	fill("intercepted", paragraphs(t, intercepted, "egress", "excluded", "ingress"))
	fill("every mode", paragraphs(t, examplePod(plan.Rules), "UDP out", "guard"))
	fill("process", "```\n"+DrawProcess()+"```\n")
	if *update {
		if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(want, string(b)); diff != "" {
		t.Errorf("%s is not what the rules do; make golden writes it (-rules +file)\n%s", file, diff)
	}
}

// paragraphs are the flows of a drawing that have these titles.
func paragraphs(t *testing.T, pod Pod, titles ...string) string {
	t.Helper()
	s, err := Draw(pod)
	if err != nil {
		t.Fatal(err)
	}
	var kept []string
	for _, flow := range strings.Split(strings.TrimSpace(s), "\n\n") {
		if slices.Contains(titles, strings.TrimSpace(flow[:min(len(flow), 9)])) {
			kept = append(kept, flow)
		}
	}
	return "```\n" + strings.Join(kept, "\n\n") + "\n```\n"
}

// places is the table of all chains in the order in which they are called.
func places(t *testing.T) string {
	type place struct {
		hook       nft.Hook
		at, prio   int32
		who, chain string
	}
	var order []place
	modes := map[place][]string{}
	hooks := []nft.Hook{nft.Prerouting, nft.Forward, nft.Output, nft.Postrouting}
	for _, name := range []string{"native", "rules", "nat-proxy", "tproxy", "ambient", "intercepted"} {
		pod := examplePod(plan.Mode(name))
		if name == "intercepted" {
			pod = examplePod(plan.Rules)
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

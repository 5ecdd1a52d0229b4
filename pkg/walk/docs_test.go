package walk_test

import (
	"flag"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/meshvirt/meshvirt/pkg/drawing"
	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/walk"
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
	fill("places", walk.Places(t))
	for _, mode := range []plan.Mode{plan.Native, plan.Rules, plan.NATProxy, plan.TProxy, plan.Ambient} {
		fill(string(mode), paragraphs(t, walk.SamplePod(mode), "egress", "excluded", "ingress", "port 22", "own", "tunnel", "probe", "UDP in", "DNS"))
	}
	intercepted := walk.SamplePod(plan.Rules)
	intercepted.Plan.Mesh.TProxyMark = 1337
	fill("intercepted", paragraphs(t, intercepted, "egress", "excluded", "ingress"))
	fill("every mode", paragraphs(t, walk.SamplePod(plan.Rules), "UDP out", "guard"))
	fill("process", "```\n"+drawing.OfProcess()+"```\n")
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
func paragraphs(t *testing.T, pod walk.Pod, titles ...string) string {
	t.Helper()
	s, err := drawing.Of(pod)
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

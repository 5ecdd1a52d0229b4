package walk_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/meshvirt/meshvirt/pkg/drawing"
	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/walk"
	"github.com/meshvirt/meshvirt/test/golden"
)

// The drawings of docs/datapath.md are made from the rules by `make golden`; the text around them is not.
func TestWaysAreDocumented(t *testing.T) {
	const file = "../../docs/datapath.md"
	want := golden.Read(t, file)
	fill := func(block, text string) { want = golden.Section(t, want, block+": made by pkg/walk,", text) }
	fill("places", walk.Places(t))
	for _, mode := range []plan.Mode{plan.Native, plan.Rules, plan.NATProxy, plan.TProxy, plan.Ambient} {
		fill(string(mode), paragraphs(t, walk.SamplePod(mode), "egress", "excluded", "ingress", "port 22", "own", "tunnel", "probe", "UDP in", "DNS"))
	}
	intercepted := walk.SamplePod(plan.Rules)
	intercepted.Plan.Mesh.TProxyMark = 1337
	fill("intercepted", paragraphs(t, intercepted, "egress", "excluded", "ingress"))
	fill("every mode", paragraphs(t, walk.SamplePod(plan.Rules), "UDP out", "guard"))
	fill("process", "```\n"+drawing.OfProcess()+"```\n")
	golden.File(t, file, want)
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

package decision

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/meshvirt/meshvirt/test/golden"
)

// docs/reasons.md has a line for each reason, made from ReasonTexts by `make golden`.
func TestReasonsAreDocumented(t *testing.T) {
	const file = "../../docs/reasons.md"
	var b strings.Builder
	b.WriteString("# Reasons\n\nThe log, the metric's label `reason`, `meshvirt.io/status` and the command line use these strings.\n" +
		"This page is made from the code (`make golden`).\n\n| reason | meaning |\n|---|---|\n")
	for _, r := range slices.Sorted(maps.Keys(ReasonTexts)) {
		fmt.Fprintf(&b, "| `%s` | %s |\n", r, ReasonTexts[r])
	}
	golden.File(t, file, b.String())
}

func TestReasonsHaveTexts(t *testing.T) {
	for _, r := range []Reason{NotVirtLauncher, HostNetwork, OptedOut, NoMesh, NoInterception, InterceptionTPROXY, NoVirtualInterface, ProcessBinding, BindingUnsupported, Invalid, Requested, ConfiguredDefault, MasqueradeSidecar, MasqueradeAmbient, MeshUnsupported, AmbientUnsupported} {
		if ReasonTexts[r] == "" {
			t.Errorf("%s has no text", r)
		}
	}
}

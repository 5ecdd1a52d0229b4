package decision

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write docs/auto.md and docs/reasons.md")

// docs/reasons.md has a line for each reason, made from ReasonTexts by `make golden`.
func TestReasonsAreDocumented(t *testing.T) {
	const file = "../../docs/reasons.md"
	var b strings.Builder
	b.WriteString("# Reasons\n\nThe log, the metric's label `reason`, `meshvirt.io/status` and the command line use these strings.\n" +
		"This page is made from the code (`make golden`).\n\n| reason | meaning |\n|---|---|\n")
	for _, r := range slices.Sorted(maps.Keys(ReasonTexts)) {
		fmt.Fprintf(&b, "| `%s` | %s |\n", r, ReasonTexts[r])
	}
	compareDoc(t, file, b.String())
}

func TestReasonsHaveTexts(t *testing.T) {
	for _, r := range []Reason{NotVirtLauncher, HostNetwork, OptedOut, NoMesh, NoInterception, InterceptionTPROXY, NoVirtualInterface, ProcessBinding, BindingUnsupported, Invalid, Requested, ConfiguredDefault, MasqueradeSidecar, MasqueradeAmbient, MeshUnsupported, AmbientUnsupported} {
		if ReasonTexts[r] == "" {
			t.Errorf("%s has no text", r)
		}
	}
}

func compareDoc(t *testing.T, file, want string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("%s is not what the code says; `make golden` writes it (-code +file)\n%s", file, diff)
	}
}

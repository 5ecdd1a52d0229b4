package mutate

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
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
	compareDoc(t, file, b.String())
}

func compareDoc(t *testing.T, file, want string) {
	t.Helper()
	if *update {
		write(t, file, want)
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("%s is not what the code says; `make golden` writes it (-code +file)\n%s", file, diff)
	}
}

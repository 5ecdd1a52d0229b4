package netlab

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/meshvirt/meshvirt/tools"
)

var update = flag.Bool("update", false, "write the table in docs/isolation.md again")

// TestAttacksAreDocumented compares docs/isolation.md with the table of attempts.
func TestAttacksAreDocumented(t *testing.T) {
	root, err := tools.Root()
	do(t, err)
	file := filepath.Join(root, "docs/isolation.md")
	b, err := os.ReadFile(file)
	do(t, err)
	const begin, end = "<!-- attempts: made from test/e2e/netlab by make golden -->\n", "<!-- end of attempts -->\n"
	before, rest, _ := strings.Cut(string(b), begin)
	_, after, found := strings.Cut(rest, end)
	if !found {
		t.Fatalf("docs/isolation.md: want the lines %q and %q", begin, end)
	}
	want := before + begin + table() + end + after
	if *update {
		do(t, os.WriteFile(file, []byte(want), 0o644))
		return
	}
	if diff := cmp.Diff(want, string(b)); diff != "" {
		t.Errorf("docs/isolation.md is not what the code says; make golden writes it (-code +file)\n%s", diff)
	}
}

func table() string {
	var b strings.Builder
	b.WriteString("| a guest sends | why it matters | what becomes of it | without the guard |\n|---|---|---|---|\n")
	for _, k := range kinds() {
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", k.what, k.why, k.becomes, k.bare())
	}
	return b.String()
}

// bare tells what becomes of attempts without the guard.
func (k kind) bare() string {
	if k.becomes != lost {
		return "the same"
	}
	var vain []string
	some := false
	for _, a := range k.attempts {
		some = some || a.vain == ""
		if a.vain != "" && !slices.Contains(vain, a.vain) {
			vain = append(vain, a.vain)
		}
	}
	switch {
	case len(vain) == 0:
		return "arrives"
	case some:
		return "arrives, except: " + strings.Join(vain, "; ")
	}
	return "never arrives: " + strings.Join(vain, "; ")
}

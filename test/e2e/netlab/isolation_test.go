package netlab

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/meshvirt/meshvirt/test/golden"
	"github.com/meshvirt/meshvirt/tools"
)

// TestAttacksAreDocumented compares docs/isolation.md with the table of attempts.
func TestAttacksAreDocumented(t *testing.T) {
	root, err := tools.Root()
	do(t, err)
	file := filepath.Join(root, "docs/isolation.md")
	golden.File(t, file, golden.Section(t, golden.Read(t, file), "attempts: made from test/e2e/netlab", table()))
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

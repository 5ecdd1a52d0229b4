package annotations

import (
	"fmt"
	"strings"
	"testing"

	"github.com/meshvirt/meshvirt/test/golden"
)

// The table of docs/annotations.md is made from Keys by `make golden`; the text around it is not.
func TestKeysAreDocumented(t *testing.T) {
	const file = "../../docs/annotations.md"
	var table strings.Builder
	table.WriteString("| key | value | without it | example |\n|---|---|---|---|\n")
	for _, k := range Keys {
		fmt.Fprintf(&table, "| `%s` | %s | %s | `%s` |\n", k.Name, strings.TrimPrefix(k.Want, "want "), k.Default, k.Example)
	}
	golden.File(t, file, golden.Section(t, golden.Read(t, file), "keys: made from pkg/annotations", table.String()))
}

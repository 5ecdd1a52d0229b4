package annotations

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the table of docs/annotations.md")

// The table of docs/annotations.md is made from Keys by `make golden`; the text around it is not.
func TestKeysAreDocumented(t *testing.T) {
	const file = "../../docs/annotations.md"
	const begin, end = "<!-- keys: made from pkg/annotations by make golden -->\n", "<!-- end of keys -->\n"
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok1 := strings.Cut(string(b), begin)
	_, tail, ok2 := strings.Cut(rest, end)
	if !ok1 || !ok2 {
		t.Fatalf("%s lacks the lines %q and %q", file, begin, end)
	}
	var table strings.Builder
	table.WriteString("| key | value | without it | example |\n|---|---|---|---|\n")
	for _, k := range Keys {
		fmt.Fprintf(&table, "| `%s` | %s | %s | `%s` |\n", k.Name, strings.TrimPrefix(k.Want, "want "), k.Default, k.Example)
	}
	want := head + begin + table.String() + end + tail
	if *update {
		if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(want, string(b)); diff != "" {
		t.Errorf("%s is not what the code says; `make golden` writes it (-code +file)\n%s", file, diff)
	}
}

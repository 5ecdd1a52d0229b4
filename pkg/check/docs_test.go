package check

import (
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/meshvirt/meshvirt/pkg/inventory"
)

var update = flag.Bool("update", false, "write the tables of docs/check.md")

// The codes and the rights in docs/check.md are made from the code by `make golden`; the text around them is not.
func TestCodesAndRightsAreDocumented(t *testing.T) {
	const file = "../../docs/check.md"
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	want := section(t, string(b), "codes", codeTable(t))
	want = section(t, want, "rights", role())
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

// section puts the text between the lines of that name.
func section(t *testing.T, all, name, text string) string {
	t.Helper()
	begin, end := "<!-- "+name+": made from pkg/check by make golden -->\n", "<!-- end of "+name+" -->\n"
	head, rest, ok1 := strings.Cut(all, begin)
	_, tail, ok2 := strings.Cut(rest, end)
	if !ok1 || !ok2 {
		t.Fatalf("docs/check.md lacks the lines %q and %q", begin, end)
	}
	return head + begin + text + end + tail
}

// codeTable has the codes in the order of their declarations, which must be all.
func codeTable(t *testing.T) string {
	t.Helper()
	source, err := parser.ParseFile(token.NewFileSet(), "codes.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var order []Code
	for _, d := range source.Decls {
		g, ok := d.(*ast.GenDecl)
		if !ok || g.Tok != token.CONST {
			continue
		}
		for _, s := range g.Specs {
			v := s.(*ast.ValueSpec)
			if kind, ok := v.Type.(*ast.Ident); ok && kind.Name == "Code" {
				order = append(order, Code(v.Names[0].Name))
			}
		}
	}
	var b strings.Builder
	b.WriteString("| code | severity | meaning |\n|---|---|---|\n")
	for _, c := range order {
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", c, Codes[c].Severity, Codes[c].Meaning)
	}
	for c := range Codes {
		if !slices.Contains(order, c) {
			t.Errorf("code %s is no constant of that name", c)
		}
	}
	if len(order) != len(Codes) {
		t.Errorf("%d constants, %d codes with a meaning", len(order), len(Codes))
	}
	return b.String()
}

func role() string {
	var b strings.Builder
	b.WriteString("```yaml\napiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\nmetadata:\n  name: meshvirt-check\nrules:\n")
	for _, r := range inventory.Resources {
		fmt.Fprintf(&b, "  - apiGroups: [%q]\n    resources: [%s]\n    verbs: [get, list] # %s\n", r.Group, r.Resource, r.Why)
	}
	b.WriteString("```\n")
	return b.String()
}

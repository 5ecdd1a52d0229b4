package check

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"slices"
	"strings"
	"testing"

	"github.com/meshvirt/meshvirt/pkg/inventory"
	"github.com/meshvirt/meshvirt/test/golden"
)

// The codes and the rights in docs/check.md are made from the code by `make golden`; the text around them is not.
func TestCodesAndRightsAreDocumented(t *testing.T) {
	const file = "../../docs/check.md"
	want := golden.Section(t, golden.Read(t, file), "codes: made from pkg/check", codeTable(t))
	golden.File(t, file, golden.Section(t, want, "rights: made from pkg/check", role()))
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

package charts_test

import (
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"

	"github.com/meshvirt/meshvirt/test/golden"
)

// value is one line of the table in docs/values.md.
type value struct {
	path, comment string
	// JSON of the default; empty for a group of values.
	byDefault string
}

// inCell makes text that a table of Markdown shows as it is.
var inCell = strings.NewReplacer("|", `\|`, "<", "&lt;")

// Each value has a name in the schema, and each name there is a value.
func TestSchemaNamesEveryValue(t *testing.T) {
	named := schemaLeaves(t)
	var values []string
	for _, v := range readValues(t, named) {
		if v.byDefault != "" {
			values = append(values, v.path)
		}
	}
	slices.Sort(named)
	slices.Sort(values)
	if diff := cmp.Diff(values, named); diff != "" {
		t.Errorf("values.schema.json differs from values.yaml (-values +schema)\n%s", diff)
	}
}

func TestGoldenValues(t *testing.T) {
	var b strings.Builder
	b.WriteString(`# Values of the chart

Made by ` + "`make golden`" + ` of charts/meshvirt/values.yaml. The schema beside that file refuses unknown names and bad values.

| value | default | what for |
|---|---|---|
`)
	for _, v := range readValues(t, schemaLeaves(t)) {
		cell := ""
		if v.byDefault != "" {
			cell = "`" + v.byDefault + "`"
		} else if v.comment == "" {
			continue
		}
		b.WriteString("| `" + v.path + "` | " + cell + " | " + inCell.Replace(v.comment) + " |\n")
	}
	golden.File(t, "../docs/values.md", b.String())
}

// The page about installing sets values that exist.
func TestInstallPageNamesValues(t *testing.T) {
	page, err := os.ReadFile("../docs/install.md")
	if err != nil {
		t.Fatal(err)
	}
	known, groups := map[string]bool{}, map[string]bool{}
	for _, v := range readValues(t, schemaLeaves(t)) {
		known[v.path] = true
		group, _, _ := strings.Cut(v.path, ".")
		groups[group] = true
	}
	found := 0
	for _, m := range regexp.MustCompile("(?:--set(?:-file)? |`)(([a-zA-Z]+)\\.[a-zA-Z.]+)").FindAllSubmatch(page, -1) {
		if !groups[string(m[2])] {
			continue // the name of a file
		}
		if found++; !known[string(m[1])] {
			t.Errorf("docs/install.md names %s, which is no value", m[1])
		}
	}
	if found < 5 {
		t.Errorf("docs/install.md names %d values, want some", found)
	}
}

// schemaLeaves gives the paths of the schema below which it names nothing more.
func schemaLeaves(t *testing.T) []string {
	t.Helper()
	var schema map[string]any
	read(t, "meshvirt/values.schema.json", &schema)
	definitions, _ := schema["definitions"].(map[string]any)
	var leaves []string
	var walk func(path string, s map[string]any)
	walk = func(path string, s map[string]any) {
		if ref, ok := s["$ref"].(string); ok {
			s, _ = definitions[strings.TrimPrefix(ref, "#/definitions/")].(map[string]any)
		}
		properties, ok := s["properties"].(map[string]any)
		if !ok {
			leaves = append(leaves, path)
			return
		}
		if s["additionalProperties"] != false {
			t.Errorf("%q takes keys that nothing reads", path)
		}
		for name, p := range properties {
			property, _ := p.(map[string]any)
			walk(join(path, name), property)
		}
	}
	walk("", schema)
	return slices.DeleteFunc(leaves, func(path string) bool { return path == "global" }) // helm's own
}

// readValues reads values.yaml down to the leaves, and lower where they do not name what it has.
func readValues(t *testing.T, leaves []string) []value {
	t.Helper()
	b, err := os.ReadFile("meshvirt/values.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var document yaml.Node
	if err := yaml.Unmarshal(b, &document); err != nil {
		t.Fatal(err)
	}
	var values []value
	var walk func(path string, m *yaml.Node)
	walk = func(path string, m *yaml.Node) {
		for i := 0; i < len(m.Content); i += 2 {
			key, content := m.Content[i], m.Content[i+1]
			v := value{path: join(path, key.Value), comment: text(key.HeadComment)}
			if content.Kind == yaml.MappingNode && !slices.Contains(leaves, v.path) {
				values = append(values, v)
				walk(v.path, content)
				continue
			}
			var data any
			if err := content.Decode(&data); err != nil {
				t.Fatal(err)
			}
			js, err := json.Marshal(data)
			if err != nil {
				t.Fatal(err)
			}
			v.byDefault = string(js)
			values = append(values, v)
		}
	}
	walk("", document.Content[0])
	return values
}

func join(path, name string) string { return strings.TrimPrefix(path+"."+name, ".") }

// text joins the lines of a comment. Examples are indented there.
func text(comment string) string {
	var words []string
	for line := range strings.Lines(comment) {
		line = strings.TrimRight(strings.TrimPrefix(line, "#"), "\n")
		if example, ok := strings.CutPrefix(line, "   "); ok {
			line = "`" + example + "`"
		}
		if line = strings.TrimSpace(line); line != "" {
			words = append(words, line)
		}
	}
	return strings.Join(words, " ")
}

package charts_test

import (
	"os"
	"path/filepath"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/meshvirt/meshvirt/test/golden"
)

// Without a cluster helm does not show the notes, so they are rendered as the text of a ConfigMap, in a
// copy of the chart.
func TestGoldenNotes(t *testing.T) {
	copied := filepath.Join(t.TempDir(), "meshvirt")
	if err := os.CopyFS(copied, os.DirFS("meshvirt")); err != nil {
		t.Fatal(err)
	}
	notes, err := os.ReadFile("meshvirt/templates/NOTES.txt")
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"_notes.tpl": `{{ define "notes" }}` + string(notes) + `{{ end }}`,
		"notes.yaml": `notes: {{ include "notes" . | quote }}`,
	} {
		if err := os.WriteFile(filepath.Join(copied, "templates", name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	cases, err := filepath.Glob("testdata/*/values.yaml")
	if err != nil || len(cases) == 0 {
		t.Fatalf("no cases (%v)", err)
	}
	for _, values := range cases {
		dir := filepath.Dir(values)
		t.Run(filepath.Base(dir), func(t *testing.T) {
			out, stderr := helm(t, "template", "rel", copied, "--namespace=meshvirt-system", "--show-only=templates/notes.yaml", "--values="+values)
			if stderr != "" {
				t.Fatal(stderr)
			}
			var rendered struct{ Notes string }
			if err := yaml.Unmarshal([]byte(out), &rendered); err != nil {
				t.Fatal(err)
			}
			golden.File(t, filepath.Join(dir, "notes.txt"), rendered.Notes)
		})
	}
}

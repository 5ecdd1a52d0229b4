package mutate

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	jsonpatch "github.com/evanphx/json-patch/v5"
	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/meshvirt/meshvirt/pkg/kubevirt"
	"github.com/meshvirt/meshvirt/pkg/patch"
	"github.com/meshvirt/meshvirt/pkg/templates"
	"github.com/meshvirt/meshvirt/test/golden"
)

var testConfig = Config{Image: templates.Image{Name: "example.com/dataplane:test", PullPolicy: corev1.PullIfNotPresent}}

// A golden case is a folder: pod.yaml and perhaps vmi.yaml go in, want.yaml (only if the pod
// changes) and report.txt come out. Pods are compared, not patches.
func TestGolden(t *testing.T) {
	for _, dir := range must(filepath.Glob("testdata/golden/*")) {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			in := readYAML(t, filepath.Join(dir, "pod.yaml"))
			facts := Facts{VMI: readVMI(t, filepath.Join(dir, "vmi.yaml"))}
			got, report := applyJSON(t, in, facts)
			changed := got != in
			if *golden.Update {
				write(t, filepath.Join(dir, "report.txt"), report)
				if changed {
					write(t, filepath.Join(dir, "want.yaml"), string(must(yaml.JSONToYAML([]byte(got)))))
				} else if err := os.Remove(filepath.Join(dir, "want.yaml")); err != nil && !errors.Is(err, fs.ErrNotExist) {
					t.Fatal(err)
				}
			}
			want := in
			if changed {
				want = readYAML(t, filepath.Join(dir, "want.yaml"))
			} else if _, err := os.Stat(filepath.Join(dir, "want.yaml")); err == nil {
				t.Error("the pod came out as it went in, but there is a want.yaml")
			}
			if diff := cmp.Diff(generic(t, want), generic(t, got)); diff != "" {
				t.Errorf("pod (-want +got)\n%s", diff)
			}
			if diff := cmp.Diff(string(must(os.ReadFile(filepath.Join(dir, "report.txt")))), report); diff != "" {
				t.Errorf("report (-want +got)\n%s", diff)
			}
			if again, _ := applyJSON(t, got, facts); again != got {
				t.Errorf("applied twice (-once +twice)\n%s", cmp.Diff(generic(t, got), generic(t, again)))
			}
		})
	}
}

// applyJSON adapts a pod in JSON as the webhook does, by patch, and gives the report with the errors.
func applyJSON(t *testing.T, in string, facts Facts) (out, report string) {
	t.Helper()
	var pod corev1.Pod
	if err := json.Unmarshal([]byte(in), &pod); err != nil {
		t.Fatal(err)
	}
	before := pod.DeepCopy()
	adapted, r, errs := Apply(&pod, facts, testConfig)
	if diff := cmp.Diff(before, &pod); diff != "" {
		t.Errorf("Apply changed its argument (-before +after)\n%s", diff)
	}
	var lines strings.Builder
	lines.WriteString(r.String())
	for _, e := range errs {
		lines.WriteString("error: " + e.Error() + "\n")
	}
	ops := patch.Between(&pod, adapted)
	if len(ops) == 0 {
		return in, lines.String()
	}
	patch, err := jsonpatch.DecodePatch(must(json.Marshal(ops)))
	if err != nil {
		t.Fatal(err)
	}
	patched, err := patch.Apply([]byte(in))
	if err != nil {
		t.Fatalf("apply patch: %v", err)
	}
	// The patch, which is made by hand, says the same as the pod.
	var fromPatch corev1.Pod
	if err := json.Unmarshal(patched, &fromPatch); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(generic(t, string(must(json.Marshal(adapted)))), generic(t, string(must(json.Marshal(fromPatch))))); diff != "" {
		t.Errorf("patched pod differs from the adapted one (-adapted +patched)\n%s", diff)
	}
	return string(patched), lines.String()
}

func readYAML(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	j, err := yaml.YAMLToJSON(b)
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	return string(j)
}

// readVMI gives nil if there is no such file.
func readVMI(t *testing.T, file string) *kubevirt.VMI {
	t.Helper()
	if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	vmi, err := kubevirt.ParseVMI([]byte(readYAML(t, file)))
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	return vmi
}

func generic(t *testing.T, j string) (v any) {
	t.Helper()
	if err := json.Unmarshal([]byte(j), &v); err != nil {
		t.Fatal(err)
	}
	return v
}

func write(t *testing.T, file, s string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(s), 0o644); err != nil {
		t.Fatal(err)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

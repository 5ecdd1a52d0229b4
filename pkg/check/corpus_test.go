package check

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/meshvirt/meshvirt/pkg/inventory"
	"github.com/meshvirt/meshvirt/pkg/mutate"
	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/templates"
)

// What was just adapted is well, but for what admission itself has warned of; what was not is said to be so.
func TestCorpus(t *testing.T) {
	files, err := filepath.Glob("../../test/corpus/pods/*/*/injected-*.yaml")
	if err != nil || len(files) < 50 {
		t.Fatalf("%d pods (%v), want at least 50", len(files), err)
	}
	adapted := 0
	for _, file := range files {
		c := world{&inventory.Cluster{Now: now, Unknown: map[string]string{inventory.Configurations: ""}}}
		c.addFile(t, filepath.Join(filepath.Dir(file), "vmi.yaml"))
		pod := &corev1.Pod{}
		b, err := os.ReadFile(file)
		if err == nil {
			err = yaml.Unmarshal(b, pod)
		}
		if err != nil {
			t.Fatal(err)
		}
		out, report, errs := mutate.Apply(pod, mutate.Facts{VMI: c.Instances[0].VMI}, mutate.Config{Image: templates.Image{Name: templates.DefaultImage}})
		codes := func(pod *corev1.Pod) (codes []Code, said []string) {
			c.Pods = []corev1.Pod{*pod}
			c.Pods[0].Status.Phase = corev1.PodRunning
			for _, f := range Run(c.Cluster).Findings {
				codes = append(codes, f.Code)
				said = append(said, f.Message)
				if f.Code == KnownIssue {
					said = append(said, f.Fix)
				}
			}
			return codes, said
		}
		before, _ := codes(pod)
		after, said := codes(out)
		if len(errs) > 0 || report.Mode == plan.Off {
			if slices.Contains(before, NotAdapted) {
				t.Errorf("%s: nothing is to be adapted (%s), and it says %v", file, report.Reason, before)
			}
			continue
		}
		adapted++
		if !slices.Equal(before, []Code{NotAdapted}) {
			t.Errorf("%s: before adaptation %v", file, before)
		}
		if slices.ContainsFunc(after, func(c Code) bool { return c != KnownIssue && c != Doubtful }) {
			t.Errorf("%s: after adaptation %v", file, after)
		}
		if diff := cmp.Diff(report.Warnings, said, cmpopts.SortSlices(func(a, b string) bool { return a < b }), cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%s (-admission +check)\n%s", file, diff)
		}
	}
	if adapted < 50 {
		t.Errorf("%d pods are adapted, want at least 50", adapted)
	}
}

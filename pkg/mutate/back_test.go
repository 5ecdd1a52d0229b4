package mutate

import (
	"encoding/json"
	"testing"

	jsonpatch "github.com/evanphx/json-patch/v5"
	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"github.com/meshvirt/meshvirt/pkg/kubevirt"
	"github.com/meshvirt/meshvirt/pkg/patch"
	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/record"
)

// undoJSON undoes an adapted pod in JSON, by patch.
func undoJSON(t *testing.T, in string) (string, record.Changes) {
	t.Helper()
	var pod corev1.Pod
	if err := json.Unmarshal([]byte(in), &pod); err != nil {
		t.Fatal(err)
	}
	before := pod.DeepCopy()
	undone, changes, err := record.Undo(&pod)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, &pod); diff != "" {
		t.Errorf("Undo changed its argument (-before +after)\n%s", diff)
	}
	patch := must(jsonpatch.DecodePatch(must(patch.Encode(patch.Between(&pod, undone)))))
	out := must(patch.Apply([]byte(in)))
	var fromPatch corev1.Pod
	if err := json.Unmarshal(out, &fromPatch); err != nil {
		t.Fatal(err)
	}
	if a, b := string(must(json.Marshal(undone))), string(must(json.Marshal(&fromPatch))); a != b {
		t.Errorf("patched pod differs from the undone one (-undone +patched)\n%s", cmp.Diff(generic(t, a), generic(t, b)))
	}
	return string(out), changes
}

// checkUndo is part of TestCorpus: every adapted pod can be given back as it was, and once more.
func checkUndo(t *testing.T, before, adaptedPod string) {
	t.Helper()
	got, changes := undoJSON(t, adaptedPod)
	if diff := cmp.Diff(generic(t, before), generic(t, got)); diff != "" || len(changes.Warnings) > 0 {
		t.Errorf("undone, warnings %q (-before +after)\n%s", changes.Warnings, diff)
	}
	if again, changes := undoJSON(t, got); again != got || len(changes.Made) > 0 {
		t.Errorf("undone twice, it changes %q", changes.Made)
	}
}

// What is not there in the pod comes back as not being there: arguments, annotations, the command.
func TestUndoGivesAbsenceBack(t *testing.T) {
	for name, change := range map[string]func(*corev1.Pod){
		"no arguments": func(p *corev1.Pod) { p.Spec.InitContainers[0].Args = nil },
		"all in the command": func(p *corev1.Pod) {
			c := &p.Spec.InitContainers[0]
			c.Command, c.Args = c.Args, nil
		},
		"no annotations": func(p *corev1.Pod) { p.Annotations = nil },
	} {
		t.Run(name, func(t *testing.T) {
			before := recorded(t)
			change(before)
			in := string(must(json.Marshal(before)))
			out, report := applyJSON(t, in, Facts{VMI: &kubevirt.VMI{Binding: kubevirt.BindingMasquerade}})
			if out == in {
				t.Fatalf("not adapted: %s", report)
			}
			checkUndo(t, in, out)
		})
	}
}

func apply(t *testing.T, pod *corev1.Pod) *corev1.Pod {
	t.Helper()
	out, report, errs := Apply(pod, Facts{}, testConfig)
	if len(errs) > 0 || report.Mode == plan.Off {
		t.Fatalf("report %+v, errors %v", report, errs)
	}
	return out
}

func samePods(t *testing.T, what string, want, got *corev1.Pod) {
	t.Helper()
	if diff := cmp.Diff(generic(t, string(must(json.Marshal(want)))), generic(t, string(must(json.Marshal(got))))); diff != "" {
		t.Errorf("%s (-want +got)\n%s", what, diff)
	}
}

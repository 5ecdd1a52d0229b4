package record_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"github.com/meshvirt/meshvirt/pkg/annotations"
	"github.com/meshvirt/meshvirt/pkg/mesh"
	"github.com/meshvirt/meshvirt/pkg/mutate"
	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/record"
	"github.com/meshvirt/meshvirt/pkg/templates"
	"github.com/meshvirt/meshvirt/test/corpus"
)

var config = mutate.Config{Image: templates.Image{Name: "example.com/dataplane:test"}}

func apply(t *testing.T, pod *corev1.Pod) *corev1.Pod {
	t.Helper()
	out, report, errs := mutate.Apply(pod, mutate.Facts{}, config)
	if len(errs) > 0 || report.Mode == plan.Off {
		t.Fatalf("report %+v, errors %v", report, errs)
	}
	return out
}

func samePods(t *testing.T, what string, want, got *corev1.Pod) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-want +got)\n%s", what, diff)
	}
}

func undo(t *testing.T, pod *corev1.Pod) (*corev1.Pod, record.Changes) {
	t.Helper()
	out, changes, err := record.Undo(pod)
	if err != nil {
		t.Fatal(err)
	}
	return out, changes
}

// Adapted in one mode and then in another, a pod comes back as it was before the first.
func TestUndoKnowsTheFirstState(t *testing.T) {
	before := corpus.Pod(t, corpus.Sidecar)
	pod := before
	for _, mode := range []plan.Mode{plan.Rules, plan.Native, plan.NATProxy} {
		pod = pod.DeepCopy()
		pod.Annotations[annotations.Mode] = string(mode)
		pod = apply(t, pod)
	}
	got, changes := undo(t, pod)
	want := before.DeepCopy()
	want.Annotations[annotations.Mode] = "nat-proxy" // the user's
	samePods(t, "undone", want, got)
	if len(changes.Warnings) > 0 {
		t.Errorf("warnings %q", changes.Warnings)
	}
}

func TestRememberWhatACallerChanged(t *testing.T) {
	for name, mode := range map[string]string{"there was none": "", "there was another": "native", "there was the same": "nat-proxy"} {
		t.Run(name, func(t *testing.T) {
			before := corpus.Pod(t, corpus.Sidecar)
			if mode != "" {
				before.Annotations[annotations.Mode] = mode
			}
			pod := before
			for range 2 {
				asked := pod.DeepCopy()
				asked.Annotations[annotations.Mode] = "nat-proxy"
				out := apply(t, asked)
				record.Remember(pod, out)
				pod = out
			}
			got, _ := undo(t, pod)
			samePods(t, "undone", before, got)
		})
	}
}

func TestUndoLeavesOthersAlone(t *testing.T) {
	pod := corpus.Pod(t, corpus.Sidecar)
	got, changes, err := record.Undo(pod)
	if got != pod || len(changes.Made)+len(changes.Warnings) > 0 || err != nil {
		t.Errorf("changes %+v, error %v", changes, err)
	}
}

// A record on a pod that is not adapted came with a copied manifest.
func TestCopiedRecordIsNotBelieved(t *testing.T) {
	pod := corpus.Pod(t, corpus.Sidecar)
	pod.Annotations[annotations.Undo] = `{"annotations":{"istio.io/rev":"evil"}}`
	got, _ := undo(t, apply(t, pod))
	if v := got.Annotations["istio.io/rev"]; v != "default" {
		t.Errorf("istio.io/rev is %q, want it as it was", v)
	}
}

// Without a record the guest's interface goes back to the mesh, and the user is told.
func TestUndoWithoutRecord(t *testing.T) {
	for name, c := range map[string]struct {
		mode             plan.Mode
		change           func(*corev1.Pod)
		rerouted, exact  bool
		wantedInWarnings string
	}{
		"status":         {plan.NATProxy, func(*corev1.Pod) {}, true, true, "k6t-eth0 goes back"},
		"plan":           {plan.Rules, func(p *corev1.Pod) { delete(p.Annotations, annotations.Status) }, true, true, "k6t-eth0 goes back"},
		"native":         {plan.Native, func(*corev1.Pod) {}, true, false, "mode native"},
		"process":        {plan.Process, func(*corev1.Pod) {}, false, false, "mode process"},
		"nothing known":  {plan.Rules, forget, false, false, "stay as they are"},
		"no mesh either": {plan.Rules, func(p *corev1.Pod) { p.Spec.InitContainers = p.Spec.InitContainers[1:] }, false, false, "stay as they are"},
		"unreadable":     {plan.Rules, func(p *corev1.Pod) { p.Spec.InitContainers[0].Args = []string{"istio-iptables", "-p"} }, false, false, "cannot be read"},
	} {
		t.Run(name, func(t *testing.T) {
			before := corpus.Pod(t, corpus.Sidecar)
			before.Annotations[annotations.Mode] = string(c.mode)
			pod := apply(t, before)
			delete(pod.Annotations, annotations.Undo)
			c.change(pod)
			got, changes := undo(t, pod)
			if c.exact {
				samePods(t, "undone", before, got)
			}
			if len(changes.Warnings) != 1 || !strings.Contains(changes.Warnings[0], annotations.Undo+" is missing") || !strings.Contains(changes.Warnings[0], c.wantedInWarnings) {
				t.Errorf("warnings %q, want one with %q", changes.Warnings, c.wantedInWarnings)
			}
			if _, again := undo(t, got); len(again.Made)+len(again.Warnings) > 0 {
				t.Errorf("what is ours was still there: %+v", again)
			}
			if slices.Contains(strings.Split(got.Annotations[mesh.AnnotationRerouteInterfaces], ","), "k6t-eth0") != c.rerouted {
				t.Errorf("%s is %q", mesh.AnnotationRerouteInterfaces, got.Annotations[mesh.AnnotationRerouteInterfaces])
			}
		})
	}
}

func forget(p *corev1.Pod) {
	delete(p.Annotations, annotations.Status)
	p.Spec.InitContainers[templates.Index(p.Spec.InitContainers, templates.RulesName)].Env = nil
}

func TestUndoRefusesTamperedRecords(t *testing.T) {
	for tampered, want := range map[string]string{
		``:                            "EOF",
		`{`:                           "EOF",
		`null`:                        "null",
		`[]`:                          "cannot unmarshal array",
		`{} {}`:                       "data after the record",
		`{"annotation":{}}`:           `unknown field "annotation"`,
		`{"annotations":{"a":1}}`:     "cannot unmarshal number",
		`{"initContainers":{"x":{}}}`: "no init container x",
		`{"annotations":{"` + annotations.Status + `":"x"}}`:    "MeshVirt's own",
		`{"initContainers":{"` + templates.RulesName + `":{}}}`: "MeshVirt's own",
	} {
		pod := apply(t, corpus.Pod(t, corpus.Sidecar))
		pod.Annotations[annotations.Undo] = tampered
		_, _, err := record.Undo(pod)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "metadata.annotations["+annotations.Undo+"]") || !strings.Contains(err.Error(), "want what MeshVirt wrote") {
			t.Errorf("%s: error %v, want %q in it", tampered, err, want)
		}
		// Admission does not lose it, and says so.
		again, report, errs := mutate.Apply(pod, mutate.Facts{}, config)
		if len(errs) > 0 || again.Annotations[annotations.Undo] != tampered || !strings.Contains(strings.Join(report.Warnings, "\n"), annotations.Undo) {
			t.Errorf("%s: record %q, warnings %q, errors %v", tampered, again.Annotations[annotations.Undo], report.Warnings, errs)
		}
	}
}

// A pod adapted by a release without records, or by hand, gets none later: it would tell its
// adapted state for the first one.
func TestNoRecordIsBegunLate(t *testing.T) {
	pod := apply(t, corpus.Pod(t, corpus.Sidecar))
	delete(pod.Annotations, annotations.Undo)
	again := apply(t, pod)
	if v, ok := again.Annotations[annotations.Undo]; ok {
		t.Errorf("record %s", v)
	}
}

// What a caller changed may not fit into the record; then there is none rather than half of one.
func TestRememberNearTheLimit(t *testing.T) {
	before := corpus.Pod(t, corpus.Sidecar)
	after := apply(t, before)
	after.Annotations["b"] = "set by the caller"
	after.Annotations["a"] = strings.Repeat("x", -record.Excess(after)-1)
	record.Remember(before, after)
	if _, ok := after.Annotations[annotations.Undo]; ok || record.Excess(after) > 0 {
		t.Errorf("there is a record, and %d bytes too many", record.Excess(after))
	}
}

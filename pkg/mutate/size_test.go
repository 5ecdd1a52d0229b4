package mutate

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/meshvirt/meshvirt/pkg/annotations"
	"github.com/meshvirt/meshvirt/pkg/decision"
	"github.com/meshvirt/meshvirt/pkg/patch"
	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/record"
)

// A pod near the limit of the API server is adapted without a record, and refused in words that tell why when
// there is no room for the status either. TestAnnotationLimit holds the numbers against API servers.
func TestAnnotationsNearTheLimit(t *testing.T) {
	const key = "example.com/notes"
	of := func(bytes int) *corev1.Pod {
		pod := readPod(t, "rules-native-sidecar")
		pod.Annotations[key] = strings.Repeat("x", bytes)
		return pod
	}
	adapted := apply(t, of(0))
	room := -record.Excess(adapted) // with all of ours
	undo := len(annotations.Undo) + len(adapted.Annotations[annotations.Undo])

	full := apply(t, of(room))
	if full.Annotations[annotations.Undo] == "" || record.Excess(full) != 0 {
		t.Errorf("the record is missing or does not fill the room: %d", record.Excess(full))
	}
	for _, bytes := range []int{room + 1, room + undo} {
		out, report, errs := Apply(of(bytes), Facts{}, testConfig)
		if len(errs) > 0 || report.Mode == plan.Off || out.Annotations[annotations.Status] == "" || record.Excess(out) > 0 {
			t.Fatalf("%d bytes: report %+v, errors %v", bytes, report, errs)
		}
		if _, ok := out.Annotations[annotations.Undo]; ok {
			t.Errorf("%d bytes: there is a record", bytes)
		}
		if want := "annotation meshvirt.io/undo is left out"; !strings.Contains(strings.Join(report.Warnings, "\n"), want) {
			t.Errorf("%d bytes: warnings %q, want %q", bytes, report.Warnings, want)
		}
		if strings.Contains(report.String(), "what was there before") {
			t.Errorf("%d bytes: the report tells of a record\n%s", bytes, report)
		}
		// The second call, as after another webhook, changes nothing.
		again := apply(t, out)
		samePods(t, "adapted again", out, again)
	}

	in := of(room + undo + 1)
	out, report, errs := Apply(in, Facts{}, testConfig)
	if out != in || report.Reason != decision.Invalid || len(errs) != 1 {
		t.Fatalf("report %+v, errors %v; want one", report, errs)
	}
	for _, want := range []string{"metadata.annotations: Too long: ", "262144 bytes", "262145 with what MeshVirt sets (", annotations.Status, "want 1 bytes fewer"} {
		if !strings.Contains(errs[0].Error(), want) {
			t.Errorf("the error does not have %q: %v", want, errs[0])
		}
	}

	// What is too large without us is for the API server to say.
	if _, _, errs := Apply(of(record.MaxAnnotations), Facts{}, testConfig); len(errs) > 0 {
		t.Errorf("errors %v", errs)
	}
}

// Another webhook may take the room between our two calls: then the record gives way.
func TestRecordGivesWay(t *testing.T) {
	pod := apply(t, readPod(t, "rules-native-sidecar"))
	pod.Annotations["late"] = strings.Repeat("x", 1-record.Excess(pod)-len("late"))
	out, report, errs := Apply(pod, Facts{}, testConfig)
	if len(errs) > 0 || record.Excess(out) > 0 || out.Annotations[annotations.Undo] != "" {
		t.Fatalf("errors %v, %d bytes too many, record %q", errs, record.Excess(out), out.Annotations[annotations.Undo])
	}
	if want := "change: annotation meshvirt.io/undo: removed"; !strings.Contains(report.String(), want) {
		t.Errorf("no %q in\n%s", want, report)
	}
	b, err := patch.Encode(patch.Between(pod, out))
	if err != nil || !strings.Contains(string(b), `"op":"remove","path":"/metadata/annotations/meshvirt.io~1undo"`) {
		t.Errorf("patch %s (%v)", b, err)
	}
}

// Package record is what an adapted pod says of itself: how it was adapted (meshvirt.io/status), by which plan, and how it was
// before (meshvirt.io/undo), which Undo gives back.
package record

import (
	"encoding/json"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/meshvirt/meshvirt/pkg/annotations"
	"github.com/meshvirt/meshvirt/pkg/decision"
	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/templates"
)

// Status is the value of meshvirt.io/status.
type Status struct {
	// Version is the MeshVirt release that adapted the pod.
	Version string `json:"version"`
	// Mesh, Mode and Reason are those of the adaptation's report.
	Mesh   string          `json:"mesh"`
	Mode   plan.Mode       `json:"mode"`
	Reason decision.Reason `json:"reason"`
	// Interfaces are the guest's. Adaptation removes them from the mesh's settings, where it found
	// them; from here they are known when the pod is admitted again.
	Interfaces []string `json:"interfaces"`
	// Facts is "vmi" if the VMI was known, else "pod".
	Facts string `json:"facts"`
}

// StatusOf reads what an earlier admission wrote. What does not parse was not written by us and is
// overwritten: it gives the zero Status, as a pod without the annotation does.
func StatusOf(pod *corev1.Pod) Status {
	var s Status
	if json.Unmarshal([]byte(pod.Annotations[annotations.Status]), &s) != nil {
		return Status{}
	}
	return s
}

// String is s in JSON.
func (s Status) String() string {
	b, err := json.Marshal(s)
	if err != nil { // strings only: cannot happen
		panic(err)
	}
	return string(b)
}

// PlanOf decodes the plan that an earlier admission gave to our containers. It reports false if there is none, or none of
// this release.
func PlanOf(pod *corev1.Pod) (plan.Plan, bool) {
	i := templates.Index(pod.Spec.InitContainers, templates.RulesName)
	if i < 0 {
		return plan.Plan{}, false
	}
	var encoded string
	for _, e := range pod.Spec.InitContainers[i].Env {
		if e.Name == plan.Env && e.ValueFrom == nil {
			encoded = e.Value
		}
	}
	p, err := plan.Decode(encoded)
	return p, err == nil
}

// adapted reports whether the pod shows that it was adapted, by the webhook or by hand.
func adapted(pod *corev1.Pod) bool {
	_, ok := pod.Annotations[annotations.Status]
	return ok || slices.ContainsFunc(pod.Spec.InitContainers, func(c corev1.Container) bool { return templates.Ours(c.Name) })
}

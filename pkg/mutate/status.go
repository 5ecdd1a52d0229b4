package mutate

import (
	"encoding/json"

	corev1 "k8s.io/api/core/v1"

	"github.com/meshvirt/meshvirt/pkg/annotations"
	"github.com/meshvirt/meshvirt/pkg/decision"
	"github.com/meshvirt/meshvirt/pkg/plan"
)

// Status is the value of meshvirt.io/status.
type Status struct {
	// Version is the MeshVirt release that adapted the pod.
	Version string `json:"version"`
	// Mesh, Mode and Reason are those of the Report.
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

func writeStatus(pod *corev1.Pod, s *state) decision.Reason {
	b, err := json.Marshal(Status{
		Version:    plan.Release,
		Mesh:       s.report.Mesh,
		Mode:       s.report.Mode,
		Reason:     s.report.Reason,
		Interfaces: s.interfaces,
		Facts:      s.knownBy(),
	})
	if err != nil { // strings only: cannot happen
		panic(err)
	}
	if v := string(b); pod.Annotations[annotations.Status] != v {
		setAnnotation(pod, annotations.Status, v)
		s.changed("annotation %s: %s", annotations.Status, v)
	}
	return ""
}

func setAnnotation(pod *corev1.Pod, key, value string) {
	if pod.Annotations == nil {
		pod.Annotations = map[string]string{}
	}
	pod.Annotations[key] = value
}

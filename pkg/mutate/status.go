package mutate

import (
	"encoding/json"

	corev1 "k8s.io/api/core/v1"

	"github.com/meshvirt/meshvirt/pkg/annotations"
	"github.com/meshvirt/meshvirt/pkg/plan"
)

// status is the value of meshvirt.io/status.
type status struct {
	// Version is the MeshVirt release that adapted the pod.
	Version string    `json:"version"`
	Mesh    string    `json:"mesh"`
	Mode    plan.Mode `json:"mode"`
	Reason  Reason    `json:"reason"`
	// Interfaces are the guest's. Adaptation removes them from the mesh's settings, where it found
	// them; from here they are known when the pod is admitted again.
	Interfaces []string `json:"interfaces"`
	// Facts is "vmi" if the VMI was known, else "pod".
	Facts string `json:"facts"`
}

// previousStatus reads what an earlier admission wrote. What does not parse was not written by us
// and is overwritten.
func previousStatus(pod *corev1.Pod) status {
	var s status
	if json.Unmarshal([]byte(pod.Annotations[annotations.Status]), &s) != nil {
		return status{}
	}
	return s
}

func writeStatus(pod *corev1.Pod, s *state) Reason {
	b, err := json.Marshal(status{
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

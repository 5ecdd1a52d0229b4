package mutate

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/meshvirt/meshvirt/pkg/annotations"
	"github.com/meshvirt/meshvirt/pkg/decision"
	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/record"
)

func writeStatus(pod *corev1.Pod, s *state) decision.Reason {
	status := record.Status{
		Version:    plan.Release,
		Mesh:       s.report.Mesh,
		Mode:       s.report.Mode,
		Reason:     s.report.Reason,
		Interfaces: s.interfaces,
		Facts:      s.knownBy(),
	}
	if v := status.String(); pod.Annotations[annotations.Status] != v {
		metav1.SetMetaDataAnnotation(&pod.ObjectMeta, annotations.Status, v)
		s.changed("annotation %s: %s", annotations.Status, v)
	}
	return ""
}

// writeRecord compares the pod with what it was, when all else is done. A record for which there is no room
// is left out: the pod works without.
func writeRecord(pod *corev1.Pod, s *state) decision.Reason {
	changed, err := record.Write(s.before, pod)
	if err != nil {
		s.warn("%v; it stays as it is", err)
		return ""
	}
	_, is := pod.Annotations[annotations.Undo]
	if n := record.Excess(pod); is && n > 0 {
		delete(pod.Annotations, annotations.Undo)
		s.warn("annotation %s is left out, which uninject would need: the pod's annotations would have %d bytes more than the %d that the API server takes",
			annotations.Undo, n, record.MaxAnnotations)
		if _, was := s.before.Annotations[annotations.Undo]; was {
			s.changed("annotation %s: removed", annotations.Undo)
		}
	} else if changed {
		s.changed("annotation %s: what was there before", annotations.Undo)
	}
	return ""
}

// checkSize is the last step. The API server would refuse the pod as well, but in words that let the user
// look for the fault in a manifest that has none. One that is too large by itself is left to it.
func checkSize(pod *corev1.Pod, s *state) decision.Reason {
	n := record.Excess(pod)
	if n <= 0 || record.Excess(s.before) > 0 {
		return ""
	}
	var set []string
	for _, k := range slices.Sorted(maps.Keys(pod.Annotations)) {
		if was, ok := s.before.Annotations[k]; !ok || was != pod.Annotations[k] {
			set = append(set, k)
		}
	}
	return s.invalid(&field.Error{
		Type: field.ErrorTypeTooLong, Field: annotations.Path.String(),
		Detail: fmt.Sprintf("the API server takes %d bytes, and there would be %d with what MeshVirt sets (%s): want %d bytes fewer",
			record.MaxAnnotations, record.MaxAnnotations+n, strings.Join(set, ", "), n),
	})
}

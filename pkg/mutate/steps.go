package mutate

import (
	"maps"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/meshvirt/meshvirt/pkg/annotations"
	"github.com/meshvirt/meshvirt/pkg/decision"
	"github.com/meshvirt/meshvirt/pkg/kubevirt"
	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/record"
)

func readSettings(pod *corev1.Pod, s *state) decision.Reason {
	s.previous = record.StatusOf(pod)
	if s.facts.VMI == nil {
		s.facts.VMI = recall(pod, s.previous)
	}
	settings, warnings, errs := annotations.Parse(userAnnotations(pod, s.facts.VMI), annotations.Path)
	s.settings = settings
	s.report.Warnings = append(s.report.Warnings, warnings...)
	if len(errs) > 0 {
		return s.invalid(errs...)
	}
	if settings.Mode == plan.Off {
		return decision.OptedOut
	}
	return ""
}

// userAnnotations are the pod's, and those of the VMI that did not make it to the pod: KubeVirt
// copies a VMI's annotations only when it creates the pod.
func userAnnotations(pod *corev1.Pod, vmi *kubevirt.VMI) map[string]string {
	if vmi == nil {
		return pod.Annotations
	}
	all := map[string]string{}
	for k, v := range vmi.Annotations {
		if strings.HasPrefix(k, annotations.Domain) {
			all[k] = v
		}
	}
	maps.Copy(all, pod.Annotations)
	return all
}

func checkContainers(pod *corev1.Pod, s *state) decision.Reason {
	if len(pod.Spec.Containers) == 0 {
		return s.invalid(field.Required(containersPath, "want the containers of a virt-launcher pod"))
	}
	seen := map[string]bool{}
	for _, list := range []struct {
		path       *field.Path
		containers []corev1.Container
	}{{initContainersPath, pod.Spec.InitContainers}, {containersPath, pod.Spec.Containers}} {
		for i := range list.containers {
			name := list.containers[i].Name
			if seen[name] {
				s.errs = append(s.errs, field.Duplicate(list.path.Index(i).Child("name"), name))
			}
			seen[name] = true
		}
	}
	if len(s.errs) > 0 {
		return decision.Invalid
	}
	return ""
}

// findInterface looks for the guest's virtual interface: the user knows it, or the VMI's binding
// tells, or the mesh was told to reroute it (which KubeVirt asks for on every masquerade pod), or an
// earlier admission of this pod found it. The table of decisions knows that one of them does.
func findInterface(_ *corev1.Pod, s *state) decision.Reason {
	switch {
	case s.report.Mode == plan.Process:
		s.interfaces = []string{} // none, rather than not known
	case len(s.settings.Interfaces) > 0:
		s.interfaces = s.settings.Interfaces
	case s.binding == kubevirt.BindingMasquerade:
		s.interfaces = []string{kubevirt.Bridge(s.facts.VMI.PodInterface)}
	case len(s.capture.RerouteInterfaces) > 0:
		s.interfaces = s.capture.RerouteInterfaces
	default:
		s.interfaces = s.previous.Interfaces
	}
	return ""
}

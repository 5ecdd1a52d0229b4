package mutate

import (
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/meshvirt/meshvirt/pkg/annotations"
	"github.com/meshvirt/meshvirt/pkg/plan"
)

func readSettings(pod *corev1.Pod, s *state) Reason {
	s.previous = previousStatus(pod)
	settings, warnings, errs := annotations.Parse(userAnnotations(pod, s.facts.VMI), annotationsPath)
	s.settings = settings
	s.report.Warnings = append(s.report.Warnings, warnings...)
	if len(errs) > 0 {
		return s.invalid(errs...)
	}
	if settings.Mode == plan.Off {
		return OptedOut
	}
	return ""
}

// userAnnotations are the pod's, and those of the VMI that did not make it to the pod: KubeVirt
// copies a VMI's annotations only when it creates the pod.
func userAnnotations(pod *corev1.Pod, vmi *VMI) map[string]string {
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

func checkContainers(pod *corev1.Pod, s *state) Reason {
	if len(pod.Spec.Containers) == 0 {
		return s.invalid(field.Required(containersPath, "want the containers of a virt-launcher pod"))
	}
	seen := map[string]bool{}
	for _, list := range []struct {
		path       *field.Path
		containers []corev1.Container
	}{{initContainersPath, pod.Spec.InitContainers}, {containersPath, pod.Spec.Containers}} {
		for i, c := range list.containers {
			if seen[c.Name] {
				s.errs = append(s.errs, field.Duplicate(list.path.Index(i).Child("name"), c.Name))
			}
			seen[c.Name] = true
		}
	}
	if len(s.errs) > 0 {
		return Invalid
	}
	return ""
}

// findInterface looks for the guest's virtual interface: the user knows it, or the VMI's binding
// tells, or the mesh was told to reroute it (which KubeVirt asks for on every masquerade pod), or an
// earlier admission of this pod found it.
func findInterface(_ *corev1.Pod, s *state) Reason {
	if s.facts.VMI != nil {
		s.binding = s.facts.VMI.Binding
	}
	switch {
	case len(s.settings.Interfaces) > 0:
		s.interfaces = s.settings.Interfaces
	case s.binding == BindingMasquerade:
		s.interfaces = []string{bridgeOf(s.facts.VMI.PodInterface)}
	case s.binding != "":
		return bindingReason(s.binding)
	case len(s.capture.RerouteInterfaces) > 0:
		s.interfaces = s.capture.RerouteInterfaces
	case len(s.previous.Interfaces) > 0:
		s.interfaces = s.previous.Interfaces
	default:
		return NoVirtualInterface
	}
	return ""
}

// bindingReason says why a binding other than masquerade is left alone.
func bindingReason(b Binding) Reason {
	switch b {
	case BindingPasst, BindingSlirp:
		return ProcessBinding
	case BindingNone, BindingSRIOV:
		return NoVirtualInterface
	default:
		return BindingUnsupported
	}
}

// chooseMode takes what the user asked for, else the configured default, else what suits the
// binding and the mesh.
func chooseMode(_ *corev1.Pod, s *state) Reason {
	mode, reason := s.settings.Mode, Requested
	if mode == plan.Auto && s.cfg.DefaultMode != "" {
		mode, reason = s.cfg.DefaultMode, ConfiguredDefault
	}
	if mode == plan.Auto {
		mode, reason = plan.Rules, MasqueradeSidecar
	}
	if mode == plan.Off {
		return OptedOut
	}
	s.report.Mode, s.report.Reason = mode, reason
	s.proxy = mode == plan.NATProxy
	return ""
}

// bridgePrefix is how KubeVirt names the bridge in front of a pod interface.
const bridgePrefix = "k6t-"

func bridgeOf(podInterface string) string {
	if podInterface == "" {
		podInterface = "eth0"
	}
	return bridgePrefix + podInterface
}

func cutBridge(name string) (string, bool) {
	name, ok := strings.CutPrefix(name, bridgePrefix)
	return name, ok && name != ""
}

func container(list []corev1.Container, names ...string) int {
	return slices.IndexFunc(list, func(c corev1.Container) bool { return slices.Contains(names, c.Name) })
}

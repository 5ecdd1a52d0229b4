package mutate

import (
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/meshvirt/meshvirt/pkg/annotations"
	"github.com/meshvirt/meshvirt/pkg/mesh"
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

// meshContainers are the init containers that set the mesh's redirection up, or check that
// istio-cni did.
const (
	istioInit       = "istio-init"
	istioValidation = "istio-validation"
	istioProxy      = "istio-proxy"
)

// readMesh finds the mesh's container and reads what it redirects.
func readMesh(pod *corev1.Pod, s *state) Reason {
	s.meshInit = container(pod.Spec.InitContainers, istioInit, istioValidation)
	if s.meshInit < 0 {
		return NoMesh
	}
	s.report.Mesh = "istio"
	c := &pod.Spec.InitContainers[s.meshInit]
	in := mesh.Input{
		Args:        slices.Concat(c.Command, c.Args),
		Env:         environment(c),
		Annotations: pod.Annotations,
		Image:       c.Image,
		CNI:         c.Name == istioValidation,
	}
	if in.CNI {
		for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
			if i := container(list, istioProxy); i >= 0 {
				in.Env = environment(&list[i])
			}
		}
	}
	capture, err := mesh.ReadIstio(in)
	if err != nil {
		path := initContainersPath.Index(s.meshInit).Child("args")
		return s.invalid(field.Invalid(path, strings.Join(c.Args, " "), err.Error()))
	}
	s.capture = capture
	switch capture.Interception {
	case mesh.InterceptionNone:
		return NoInterception
	case mesh.InterceptionTPROXY:
		return InterceptionTPROXY
	}
	return ""
}

// environment is what c is given by value; the rest is known to the kubelet only.
func environment(c *corev1.Container) map[string]string {
	env := map[string]string{}
	for _, e := range c.Env {
		if e.ValueFrom == nil {
			env[e.Name] = e.Value
		}
	}
	return env
}

// moveInterface tells the mesh what to do with the guest's interfaces. In mode native it reroutes
// them; in the others it leaves them alone, in every table, because our own rules own them. Both the
// arguments of istio-init and the annotations change: istio-cni reads the annotations, and so does
// the injector if it is invoked again.
func moveInterface(pod *corev1.Pod, s *state) Reason {
	c := &pod.Spec.InitContainers[s.meshInit]
	list := &c.Args
	if slices.ContainsFunc(c.Command, func(e string) bool { return strings.HasPrefix(e, "-") }) {
		list = &c.Command
	}
	args, err := mesh.ParseArgs(*list)
	if err != nil { // readMesh parsed them
		return s.invalid(field.Invalid(initContainersPath.Index(s.meshInit).Child("args"), strings.Join(c.Args, " "), err.Error()))
	}
	for _, name := range s.interfaces {
		var change mesh.AnnotationChange
		if s.report.Mode == plan.Native {
			args.Reroute(name)
			change = mesh.RerouteInterface(pod.Annotations, name)
		} else {
			args.ExcludeInterface(name)
			change = mesh.ExcludeInterface(pod.Annotations, name)
		}
		for _, k := range change.Remove {
			delete(pod.Annotations, k)
			s.changed("annotation %s: removed", k)
		}
		for _, k := range slices.Sorted(maps.Keys(change.Set)) {
			setAnnotation(pod, k, change.Set[k])
			s.changed("annotation %s: %s", k, change.Set[k])
		}
	}
	if after := args.Strings(); !slices.Equal(after, *list) {
		*list = after
		s.changed("init container %s: args %s", c.Name, strings.Join(after, " "))
	}
	return ""
}

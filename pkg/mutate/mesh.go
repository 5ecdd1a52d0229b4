package mutate

import (
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/meshvirt/meshvirt/pkg/mesh"
	"github.com/meshvirt/meshvirt/pkg/plan"
)

// The init containers that set the mesh's redirection up, or check that
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

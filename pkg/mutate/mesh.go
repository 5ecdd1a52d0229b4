package mutate

import (
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/meshvirt/meshvirt/pkg/annotations"
	"github.com/meshvirt/meshvirt/pkg/cmdline"
	"github.com/meshvirt/meshvirt/pkg/decision"
	"github.com/meshvirt/meshvirt/pkg/mesh"
	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/templates"
)

// The init containers that set the mesh's redirection up, or check that
// istio-cni did.
const (
	istioInit       = "istio-init"
	istioValidation = "istio-validation"
	istioProxy      = "istio-proxy"
)

// readMesh finds the mesh's container and reads what it redirects.
func readMesh(pod *corev1.Pod, s *state) decision.Reason {
	s.meshInit = templates.Index(pod.Spec.InitContainers, istioInit, istioValidation)
	if s.meshInit < 0 {
		return recognise(pod, s)
	}
	s.report.Mesh = mesh.IstioName
	capture, err := mesh.ReadIstio(input(pod, s.meshInit))
	if err != nil {
		path := initContainersPath.Index(s.meshInit).Child("args")
		return s.invalid(field.Invalid(path, strings.Join(pod.Spec.InitContainers[s.meshInit].Args, " "), err.Error()))
	}
	s.capture = capture
	return ""
}

// recognise looks for a mesh without istio-init: Istio's ambient one, or one that cannot be adapted yet.
func recognise(pod *corev1.Pod, s *state) decision.Reason {
	t := mesh.Traces{Annotations: pod.Annotations, Labels: pod.Labels, NamespaceLabels: s.facts.NamespaceLabels}
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for _, c := range list {
			t.Containers = append(t.Containers, c.Name)
		}
	}
	if other, redirects, ok := mesh.Recognise(t); ok {
		s.report.Mesh, s.advice = other.Name, other.Advice(t)
		if !redirects {
			s.capture.Interception = mesh.InterceptionNone
		}
	}
	if s.report.Mesh == "" && s.settings.Mode == plan.Ambient {
		s.report.Mesh = mesh.AmbientName // the namespace's label says so, which may not be known here
	}
	if s.report.Mesh == mesh.AmbientName {
		capture, err := mesh.ReadAmbient(pod.Annotations)
		if err != nil {
			return s.invalid(field.Forbidden(annotations.Path, err.Error()))
		}
		s.capture = capture
	}
	return ""
}

// input is where Istio's settings stand in a pod whose redirection the given init container sets up, or checks.
func input(pod *corev1.Pod, init int) mesh.Input {
	c := &pod.Spec.InitContainers[init]
	in := mesh.Input{
		Args:        slices.Concat(c.Command, c.Args),
		Env:         environment(c),
		Annotations: pod.Annotations,
		Image:       c.Image,
		CNI:         c.Name == istioValidation,
	}
	if in.CNI {
		for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
			if i := templates.Index(list, istioProxy); i >= 0 {
				in.Env = environment(&list[i])
			}
		}
	}
	return in
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
// them; in the modes process and ambient none are to be rerouted; in the others it leaves them alone, in every table,
// because our own rules own them. Both the arguments of istio-init and the annotations change: istio-cni
// reads the annotations, and so does the injector if it is invoked again.
func moveInterface(pod *corev1.Pod, s *state) decision.Reason {
	if s.report.Mode == plan.Process || s.report.Mode == plan.Ambient {
		s.setAnnotations(pod, mesh.RerouteNothing(pod.Annotations))
	}
	if s.meshInit < 0 {
		return ""
	}
	c := &pod.Spec.InitContainers[s.meshInit]
	list := flagList(c)
	args, err := cmdline.Parse(*list)
	if err != nil { // readMesh parsed them
		return s.invalid(field.Invalid(initContainersPath.Index(s.meshInit).Child("args"), strings.Join(c.Args, " "), err.Error()))
	}
	args = args.Within(input(pod, s.meshInit).Program())
	if s.report.Mode == plan.Process {
		args.RerouteNothing()
	}
	for _, name := range s.interfaces {
		var change mesh.AnnotationChange
		if s.report.Mode == plan.Native {
			args.Reroute(name)
			change = mesh.RerouteInterface(pod.Annotations, name)
		} else {
			args.ExcludeInterface(name)
			change = mesh.ExcludeInterface(pod.Annotations, name)
			if !args.Knows(cmdline.FlagExcludeInterfaces) {
				delete(change.Set, mesh.AnnotationExcludeInterfaces)
			}
		}
		s.setAnnotations(pod, change)
	}
	if after := args.Strings(); !slices.Equal(after, *list) {
		*list = after
		s.changed("init container %s: args %s", c.Name, strings.Join(after, " "))
	}
	return ""
}

func (s *state) setAnnotations(pod *corev1.Pod, change mesh.AnnotationChange) {
	for _, k := range change.Remove {
		delete(pod.Annotations, k)
		s.changed("annotation %s: removed", k)
	}
	for _, k := range slices.Sorted(maps.Keys(change.Set)) {
		setAnnotation(pod, k, change.Set[k])
		s.changed("annotation %s: %s", k, change.Set[k])
	}
}

// warnOfMesh tells the user what is known to go wrong with this mesh in a pod that is ready to go.
func (s *state) warnOfMesh(pod *corev1.Pod) {
	if s.report.Mode != plan.Process && s.report.Mode != plan.Ambient {
		s.report.Warnings = append(s.report.Warnings, s.advice...)
	}
	init := templates.Index(pod.Spec.InitContainers, istioInit, istioValidation)
	if init < 0 {
		return
	}
	e := mesh.Evidence{Input: input(pod, init), Mode: s.report.Mode, Plan: s.plan}
	e.RestartPolicy = pod.Spec.InitContainers[init].RestartPolicy != nil
	for _, v := range pod.Spec.Volumes {
		only := corev1.VolumeSource{Image: v.Image}
		if v.Image != nil && v.VolumeSource != only {
			e.MixedVolumes = append(e.MixedVolumes, v.Name)
		}
	}
	s.report.Issues = mesh.KnownIssues(e)
	for _, issue := range s.report.Issues {
		s.warn("%s", issue.What)
		s.warn("%s", issue.Fix)
	}
}

// flagList is the list of c that holds its flags: its command or its arguments.
func flagList(c *corev1.Container) *[]string {
	if slices.ContainsFunc(c.Command, func(e string) bool { return strings.HasPrefix(e, "-") }) {
		return &c.Command
	}
	return &c.Args
}

package mutate

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/meshvirt/meshvirt/pkg/annotations"
	"github.com/meshvirt/meshvirt/pkg/decision"
	"github.com/meshvirt/meshvirt/pkg/mesh"
	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/redirect"
)

// readMesh finds the mesh's container and reads what it redirects.
func readMesh(pod *corev1.Pod, s *state) decision.Reason {
	s.meshInit = redirect.Container(pod)
	if s.meshInit < 0 {
		return recognise(pod, s)
	}
	s.report.Mesh = mesh.IstioName
	capture, err := mesh.ReadIstio(redirect.Input(pod, s.meshInit))
	if err != nil {
		return s.invalidArgs(pod, err)
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

// moveInterface tells the mesh what to do with the guest's interfaces. In mode native it reroutes
// them; in the modes process and ambient none are to be rerouted; in the others it leaves them alone, in every table,
// because our own rules own them. Both the arguments of istio-init and the annotations change: istio-cni
// reads the annotations, and so does the injector if it is invoked again.
func moveInterface(pod *corev1.Pod, s *state) decision.Reason {
	var changes []string
	var err error
	switch s.report.Mode {
	case plan.Process, plan.Ambient:
		changes, err = redirect.RerouteNothing(pod)
	case plan.Native:
		changes, err = redirect.Reroute(pod, s.interfaces)
	default:
		changes, err = redirect.Exclude(pod, s.interfaces)
	}
	if err != nil { // readMesh parsed the arguments
		return s.invalidArgs(pod, err)
	}
	if len(changes) > 0 {
		s.report.Changes = append(slices.Grow(s.report.Changes, len(changes)+5), changes...) // 5: those to come
	}
	return ""
}

// invalidArgs denies a pod for the arguments of the mesh's init container.
func (s *state) invalidArgs(pod *corev1.Pod, err error) decision.Reason {
	path := initContainersPath.Index(s.meshInit).Child("args")
	return s.invalid(field.Invalid(path, strings.Join(pod.Spec.InitContainers[s.meshInit].Args, " "), err.Error()))
}

// warnOfMesh tells the user what is known to go wrong with this mesh in a pod that is ready to go.
func (s *state) warnOfMesh(pod *corev1.Pod) {
	if s.report.Mode != plan.Process && s.report.Mode != plan.Ambient {
		s.report.Warnings = append(s.report.Warnings, s.advice...)
	}
	init := redirect.Container(pod)
	if init < 0 {
		return
	}
	e := mesh.Evidence{Input: redirect.Input(pod, init), Mode: s.report.Mode, Plan: s.plan}
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

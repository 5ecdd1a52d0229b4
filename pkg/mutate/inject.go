package mutate

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/meshvirt/meshvirt/pkg/annotations"
	"github.com/meshvirt/meshvirt/pkg/decision"
	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/templates"
)

// injectRules puts the rule-setup container right behind the mesh's init container: the rules are
// there before anything that the mesh's proxy or the VM sends, and the mesh's own set-up (::6 on
// the loopback device) is there to be observed.
func injectRules(pod *corev1.Pod, s *state) decision.Reason {
	if s.report.Mode == plan.Process {
		return ""
	}
	c, err := templates.Rules(s.plan, s.cfg.Image, guaranteed(pod))
	if err != nil {
		return s.invalid(field.Forbidden(annotations.Path, err.Error()))
	}
	return s.put(pod, s.meshInit+1, c)
}

// injectProxy puts the relay behind the rules and, like a native mesh sidecar, before the VM.
func injectProxy(pod *corev1.Pod, s *state) decision.Reason {
	if !s.report.Mode.Relayed() { // an earlier admission, in another mode, may have injected it
		if i := templates.Index(pod.Spec.InitContainers, templates.ProxyName); i >= 0 {
			pod.Spec.InitContainers = slices.Delete(slices.Clone(pod.Spec.InitContainers), i, i+1)
			s.changed("init container %s: removed, mode %s has none", templates.ProxyName, s.report.Mode)
		}
		return ""
	}
	c, err := templates.Proxy(s.plan, s.cfg.Image, guaranteed(pod))
	if err != nil {
		return s.invalid(field.Forbidden(annotations.Path, err.Error()))
	}
	return s.put(pod, s.meshInit+2, c)
}

// put makes c an init container of the pod: at index if it is new, else where it is. What the API
// server or other webhooks added to fields that c leaves open stays.
func (s *state) put(pod *corev1.Pod, index int, c corev1.Container) decision.Reason {
	if i := templates.Index(pod.Spec.Containers, c.Name); i >= 0 {
		return s.invalid(field.Invalid(containersPath.Index(i).Child("name"), c.Name, "want another name: MeshVirt's init container has this one"))
	}
	i := templates.Index(pod.Spec.InitContainers, c.Name)
	switch {
	case i < 0:
		pod.Spec.InitContainers = slices.Insert(pod.Spec.InitContainers, index, c)
		s.changed("init container %s: inserted at %d", c.Name, index)
	case !equality.Semantic.DeepDerivative(c, pod.Spec.InitContainers[i]):
		pod.Spec.InitContainers[i] = c
		s.changed("init container %s: replaced at %d", c.Name, i)
	}
	return ""
}

// withholdToken keeps the pod's API token out of our containers, which have no use for it: one of them handles whatever the guest
// sends. It also spares every webhook a second review: API servers mount the token into containers that are put in, and
// ask again about the pod that they have changed.
func withholdToken(pod *corev1.Pod, s *state) decision.Reason {
	if automount := pod.Spec.AutomountServiceAccountToken; automount != nil && !*automount {
		return ""
	}
	var withheld bool
	for i := range pod.Spec.InitContainers {
		if !templates.Ours(pod.Spec.InitContainers[i].Name) {
			continue
		}
		c, added := templates.WithoutToken(pod.Spec.InitContainers[i])
		pod.Spec.InitContainers[i], withheld = c, withheld || added
	}
	if withheld && !slices.ContainsFunc(pod.Spec.Volumes, templates.IsNoToken) {
		pod.Spec.Volumes = append(slices.Clip(pod.Spec.Volumes), templates.NoToken())
		s.changed("volume %s: added, in the place of the pod's API token in MeshVirt's containers", templates.NoTokenName)
	}
	return ""
}

// guaranteed reports whether the pod, apart from our own containers, has the Guaranteed quality of
// service: CPU and memory limits in every container, and requests, where set, equal to them
// (https://kubernetes.io/docs/concepts/workloads/pods/pod-qos/).
func guaranteed(pod *corev1.Pod) bool {
	for _, list := range [][]corev1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
		for i := range list {
			if r := list[i].Resources; !templates.Ours(list[i].Name) && !(limited(r, corev1.ResourceCPU) && limited(r, corev1.ResourceMemory)) {
				return false
			}
		}
	}
	return true
}

func limited(r corev1.ResourceRequirements, name corev1.ResourceName) bool {
	limit, ok := r.Limits[name]
	if !ok || limit.IsZero() {
		return false
	}
	request, ok := r.Requests[name]
	return !ok || request.Cmp(limit) == 0
}

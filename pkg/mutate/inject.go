package mutate

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/meshvirt/meshvirt/pkg/templates"
)

// injectRules puts the rule-setup container right behind the mesh's init container: the rules are
// there before anything that the mesh's proxy or the VM sends, and the mesh's own set-up (::6 on
// the loopback device) is there to be observed.
func injectRules(pod *corev1.Pod, s *state) Reason {
	c, err := templates.Rules(s.plan, s.cfg.Image, guaranteed(pod))
	if err != nil {
		return s.invalid(field.Forbidden(annotationsPath, err.Error()))
	}
	s.put(pod, s.meshInit+1, c)
	return ""
}

// injectProxy puts the relay behind the rules and, like a native mesh sidecar, before the VM.
func injectProxy(pod *corev1.Pod, s *state) Reason {
	if !s.proxy {
		return ""
	}
	c, err := templates.Proxy(s.plan, s.cfg.Image, guaranteed(pod))
	if err != nil {
		return s.invalid(field.Forbidden(annotationsPath, err.Error()))
	}
	s.put(pod, s.meshInit+2, c)
	return ""
}

// put makes c an init container of the pod: at index if it is new, else where it is. What the API
// server or other webhooks added to fields that c leaves open stays.
func (s *state) put(pod *corev1.Pod, index int, c corev1.Container) {
	i := slices.IndexFunc(pod.Spec.InitContainers, func(have corev1.Container) bool { return have.Name == c.Name })
	switch {
	case i < 0:
		pod.Spec.InitContainers = slices.Insert(pod.Spec.InitContainers, index, c)
		s.changed("init container %s: inserted at %d", c.Name, index)
	case !equality.Semantic.DeepDerivative(c, pod.Spec.InitContainers[i]):
		pod.Spec.InitContainers[i] = c
		s.changed("init container %s: replaced at %d", c.Name, i)
	}
}

// guaranteed reports whether the pod, apart from our own containers, has the Guaranteed quality of
// service: CPU and memory limits in every container, and requests, where set, equal to them
// (https://kubernetes.io/docs/concepts/workloads/pods/pod-qos/).
func guaranteed(pod *corev1.Pod) bool {
	for _, c := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
		if c.Name == templates.RulesName || c.Name == templates.ProxyName {
			continue
		}
		for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
			limit, ok := c.Resources.Limits[name]
			if !ok || limit.IsZero() {
				return false
			}
			if request, ok := c.Resources.Requests[name]; ok && request.Cmp(limit) != 0 {
				return false
			}
		}
	}
	return true
}

package mesh

import (
	"maps"
	"slices"
)

// Traces are what a mesh leaves in a pod for all to see.
type Traces struct {
	// Containers are the names of all containers, init containers included.
	Containers []string
	// Annotations and Labels are the pod's; NamespaceLabels may be nil, if they are not known.
	Annotations, Labels, NamespaceLabels map[string]string
}

// An Other is a mesh that is recognised, but whose redirection is not adapted yet.
type Other struct {
	// Name is that of the report, the metric and the status.
	Name  string
	finds func(Traces) bool
	// redirects tells whether the mesh redirects this pod's traffic; nil means always.
	redirects func(Traces) bool
	advice    func(Traces) []string
}

// Advice says what happens to a VM in the pod today and what helps. A line each: API servers may cut a
// warning after 256 characters. All of it was seen in the meshes' recorded rules beside KubeVirt's.
func (o Other) Advice(t Traces) []string { return o.advice(t) }

// Others is every mesh but Istio with sidecars, each in a file of its own.
var Others = []Other{linkerd, kuma, consul, ambient}

// Recognise says which of the others t shows, and whether it redirects the pod's traffic.
func Recognise(t Traces) (o Other, redirects, ok bool) {
	i := slices.IndexFunc(Others, func(o Other) bool { return o.finds(t) })
	if i < 0 {
		return Other{}, false, false
	}
	o = Others[i]
	return o, o.redirects == nil || o.redirects(t), true
}

// has reports whether one of the containers is there.
func (t Traces) has(names ...string) bool {
	return slices.ContainsFunc(names, func(n string) bool { return slices.Contains(t.Containers, n) })
}

// label is that of the pod, or else of its namespace.
func (t Traces) label(key string) string {
	all := maps.Clone(t.NamespaceLabels)
	if all == nil {
		return t.Labels[key]
	}
	maps.Copy(all, t.Labels)
	return all[key]
}

// steppedBack reports whether KubeVirt is in its Istio mode, in which it leaves inbound TCP to the mesh:
// the VMI's annotation alone decides, and KubeVirt copies it to the pod.
func (t Traces) steppedBack() bool { return t.Annotations[annotationInject] == "true" }

// inbound says what KubeVirt makes of inbound connections beside a mesh with sidecars.
func (t Traces) inbound() []string {
	if t.steppedBack() {
		return []string{"inbound TCP goes through the mesh, but for port 22, because of the annotation " + annotationInject + " of the VMI"}
	}
	return []string{
		"inbound TCP for the VM's ports goes past the mesh, because KubeVirt forwards it first, and the mesh's own probes may fail",
		"the annotation " + annotationInject + `: "true" on the VMI makes KubeVirt leave inbound TCP, but port 22, to the mesh`,
	}
}

const usePasst = "a VM with passt binding needs none of this: its traffic comes from a process of the pod"

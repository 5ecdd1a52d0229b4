package mesh

import (
	"slices"

	"github.com/meshvirt/meshvirt/pkg/cmdline"
)

// The annotations that istio-cni reads. Istio's injector turns them into arguments of istio-init, and
// with istio-cni writes them itself where values of the installation differ from the defaults.
const (
	AnnotationInterception         = "sidecar.istio.io/interceptionMode"
	AnnotationStatusPort           = "status.sidecar.istio.io/port"
	AnnotationIncludeOutboundCIDRs = "traffic.sidecar.istio.io/includeOutboundIPRanges"
	AnnotationExcludeOutboundCIDRs = "traffic.sidecar.istio.io/excludeOutboundIPRanges"
	AnnotationIncludeOutboundPorts = "traffic.sidecar.istio.io/includeOutboundPorts"
	AnnotationExcludeOutboundPorts = "traffic.sidecar.istio.io/excludeOutboundPorts"
	AnnotationIncludeInboundPorts  = "traffic.sidecar.istio.io/includeInboundPorts"
	AnnotationExcludeInboundPorts  = "traffic.sidecar.istio.io/excludeInboundPorts"
	AnnotationExcludeInterfaces    = "traffic.sidecar.istio.io/excludeInterfaces"
	// AnnotationKubevirtInterfaces is the old name of AnnotationRerouteInterfaces, which Istio knows
	// since 1.25. From 1.26.5 and 1.27.2 on the new one wins where both are set; the releases of 1.25 to
	// 1.27 before lose a lone old one under istio-cni. KubeVirt sets both since 1.7, the old one before.
	AnnotationKubevirtInterfaces = "traffic.sidecar.istio.io/kubevirtInterfaces"
	AnnotationRerouteInterfaces  = "istio.io/reroute-virtual-interfaces"
)

// AnnotationChange is a change of a pod's annotations: the keys that get another value, and those that go.
type AnnotationChange struct {
	Set    map[string]string
	Remove []string
}

// ExcludeInterface says how a pod's annotations change so that Istio leaves the named interface alone:
// istio-cni, or the injector when it is invoked again. Applied to its own result it changes nothing.
func ExcludeInterface(annotations map[string]string, name string) AnnotationChange {
	c := AnnotationChange{Set: map[string]string{}}
	c.remove(annotations, AnnotationKubevirtInterfaces, name)
	c.remove(annotations, AnnotationRerouteInterfaces, name)
	c.add(annotations, AnnotationExcludeInterfaces, name)
	return c
}

// RerouteInterface is the inverse: both names of the reroute annotation list the interface afterwards.
func RerouteInterface(annotations map[string]string, name string) AnnotationChange {
	c := AnnotationChange{Set: map[string]string{}}
	c.add(annotations, AnnotationKubevirtInterfaces, name)
	c.add(annotations, AnnotationRerouteInterfaces, name)
	c.remove(annotations, AnnotationExcludeInterfaces, name)
	return c
}

// RerouteNothing takes both names of the reroute annotation away.
func RerouteNothing(annotations map[string]string) AnnotationChange {
	var c AnnotationChange
	for _, key := range []string{AnnotationKubevirtInterfaces, AnnotationRerouteInterfaces} {
		if _, ok := annotations[key]; ok {
			c.Remove = append(c.Remove, key)
		}
	}
	return c
}

func (c *AnnotationChange) add(annotations map[string]string, key, name string) {
	if old := annotations[key]; !slices.Contains(cmdline.Items(old), name) {
		c.Set[key] = cmdline.AddItem(old, name)
	}
}

func (c *AnnotationChange) remove(annotations map[string]string, key, name string) {
	old, ok := annotations[key]
	if !ok {
		return
	}
	switch left := cmdline.RemoveItem(old, name); left {
	case old:
	case "":
		c.Remove = append(c.Remove, key)
	default:
		c.Set[key] = left
	}
}

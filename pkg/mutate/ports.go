package mutate

import (
	"cmp"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/templates"
)

// The usual ports of our own containers. They lie beside Istio's reserved 15000 to 15090, where guests'
// applications are the least likely to be.
const (
	proxyOutboundPort = 15101
	proxyInboundPort  = 15106
	proxyStatusPort   = 15120
	proxyDNSPort      = 15153 // to 15155, one for each nameserver
	watchPort         = 15121
)

// ports gives out ports that nobody else in the pod has: not the mesh, not another container, not the guest.
type ports struct {
	taken []plan.PortRange
}

// takenPorts are those that a plan, ready but for our own ports, and the pod's containers name.
func takenPorts(pod *corev1.Pod, p *plan.Plan) *ports {
	all := &ports{taken: slices.Clone(p.Guest.TCP)}
	all.take(p.Mesh.OutboundPort, p.Mesh.InboundPort)
	all.take(p.Mesh.OwnPorts...)
	all.take(p.Inbound.ExcludePorts...) // the guest's, or a process's beside it
	if p.Mesh.DNS != nil {
		all.take(p.Mesh.DNS.Port)
	}
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			if templates.Ours(list[i].Name) {
				continue // of an earlier admission, whose ports are given out again
			}
			for _, port := range list[i].Ports {
				all.take(uint16(port.ContainerPort))
			}
		}
	}
	return all
}

func (a *ports) take(list ...uint16) {
	for _, p := range list {
		a.taken = append(a.taken, plan.Port(p))
	}
}

// free takes n ports in a row: the usual ones, or the next that nobody has. Where there are none, as beside a
// guest that lists every port, it gives the usual ones: the guest then does without them. It looks at each range
// once: a pod under review may name as many as it has room for.
func (a *ports) free(usual, n uint16) uint16 {
	slices.SortFunc(a.taken, func(x, y plan.PortRange) int { return cmp.Compare(x.First, y.First) })
	first, last := int(usual), int(usual)+int(n)-1
	for _, r := range a.taken {
		if int(r.First) <= last && first <= int(r.Last) {
			first, last = int(r.Last)+1, int(r.Last)+int(n)
		}
	}
	if last > 65535 {
		return usual
	}
	a.taken = append(a.taken, plan.PortRange{First: uint16(first), Last: uint16(last)})
	return uint16(first)
}

// warnOfListedPorts tells which ports the VMI lists that the mode cannot bring to the guest, because a container of the pod
// has them. What lists no ports asks for none.
func (s *state) warnOfListedPorts(p *plan.Plan) {
	own := slices.Concat(p.Mesh.OwnPorts, []uint16{p.Mesh.OutboundPort, p.Mesh.InboundPort, p.WatchPort})
	if x := p.Proxy; x != nil {
		own = append(own, x.OutboundPort, x.InboundPort, x.StatusPort)
	}
	listed := slices.DeleteFunc(own, func(port uint16) bool {
		return !slices.ContainsFunc(p.Guest.TCP, func(r plan.PortRange) bool { return r.Contains(port) })
	})
	if len(listed) == 0 {
		return
	}
	slices.Sort(listed)
	s.warn("the VMI lists TCP %s, which containers of the pod serve themselves: nothing from outside reaches the guest there, let it use another port",
		strings.Join(words(slices.Compact(listed)...), ","))
}

package mutate

import (
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/meshvirt/meshvirt/pkg/annotations"
	"github.com/meshvirt/meshvirt/pkg/decision"
	"github.com/meshvirt/meshvirt/pkg/kubevirt"
	"github.com/meshvirt/meshvirt/pkg/mesh"
	"github.com/meshvirt/meshvirt/pkg/plan"
)

// proxyUID is the relay's user. It is nobody's well-known user, and never the mesh's (Istio 1337, Linkerd
// 2102), whose traffic would skip redirection.
const proxyUID = 1500

// drainSeconds is how long the relay lets open connections go on once it is told to end. The
// kubelet ends native sidecars after the VM, in what is left of the pod's grace period.
const drainSeconds = 30

func makePlan(pod *corev1.Pod, s *state) decision.Reason {
	if s.report.Mode == plan.Process {
		return ""
	}
	c := s.capture
	ownPorts, excludePorts := inboundPorts(pod, s)
	p := plan.Plan{
		Release:      plan.Release,
		Mode:         s.report.Mode,
		Interfaces:   s.interfaces,
		PodInterface: podInterface(s),
		Guest:        guest(pod, s),
		Mesh: plan.Mesh{
			OutboundPort: c.OutboundPort,
			InboundPort:  c.InboundPort,
			UID:          c.UID,
			GID:          c.GID,
			OwnPorts:     ownPorts,
			DualStack:    c.DualStack,
			DNS:          c.DNS,

			DialsLoopback: c.DialsLoopback,
			TProxyMark:    c.TProxyMark,
		},
		Outbound: plan.Outbound{
			ExcludeCIDRs: union(c.ExcludeOutboundCIDRs, s.settings.ExcludeOutboundCIDRs),
			ExcludePorts: union(c.ExcludeOutboundPorts, s.settings.ExcludeOutboundPorts),
			All:          c.OutboundAll,
			IncludeCIDRs: c.IncludeOutboundCIDRs,
			IncludePorts: c.IncludeOutboundPorts,
		},
		Inbound: plan.Inbound{
			ExcludePorts: excludePorts,
			All:          c.InboundAll,
			IncludePorts: c.IncludeInboundPorts,
		},
	}
	if i := s.settings.IncludeOutbound; i != nil {
		p.Outbound.All, p.Outbound.IncludeCIDRs = i.All, i.List
	}
	if p.Mode == plan.Native {
		s.warnOfNative()
	}
	for _, port := range s.settings.ExcludeInboundPorts {
		if slices.Contains(c.OwnPorts, port) {
			s.warn("annotation %s: port %d is the mesh's own and stays with it", annotations.ExcludeInboundPorts, port)
		}
	}
	free := takenPorts(pod, &p).free
	if s.report.Mode.Relayed() {
		p.Proxy = &plan.Proxy{
			UID:          relayUser(p.Mode, c),
			OutboundPort: free(proxyOutboundPort, 1),
			InboundPort:  free(proxyInboundPort, 1),
			StatusPort:   free(proxyStatusPort, 1),
			DrainSeconds: drain(pod),
		}
	}
	if s.report.Mode.Relayed() && c.DNS != nil {
		p.Proxy.DNSPort = free(proxyDNSPort, plan.MaxNameservers)
	}
	if p.Assumed = assumed(pod, s); watched(pod, s, &p) {
		p.WatchPort = free(watchPort, 1)
	}
	s.warnOfListedPorts(&p)
	if len(s.errs) > 0 {
		return decision.Invalid
	}
	if !kubevirt.IsLauncher(pod.Labels) && p.Mode == plan.Rules {
		s.warn("mode rules needs net.ipv4.conf.%s.route_localnet=1 in the pod for inbound TCP, which KubeVirt sets on its own bridges; mode nat-proxy needs no such setting", p.Interfaces[0])
	}
	s.plan, s.report.Plan = p, &p
	return ""
}

// warnOfNative: mode native leaves the guest's traffic to Istio, whose redirect of interfaces asks for no
// list of ours.
func (s *state) warnOfNative() {
	for _, set := range []struct {
		key  string
		some bool
	}{
		{annotations.ExcludeOutboundCIDRs, len(s.settings.ExcludeOutboundCIDRs) > 0},
		{annotations.ExcludeOutboundPorts, len(s.settings.ExcludeOutboundPorts) > 0},
		{annotations.IncludeOutboundCIDRs, s.settings.IncludeOutbound != nil},
		{annotations.ExcludeInboundPorts, len(s.settings.ExcludeInboundPorts) > 0},
	} {
		if set.some {
			s.warn("annotation %s: has no effect in mode native, which leaves the VM's traffic to Istio", set.key)
		}
	}
}

// inboundPorts are those that pass by the mesh: own stay with the pod, exclude go to the guest. In a
// virt-launcher pod everything but the mesh is the guest, so what a user excludes is the guest's. An opted-in
// pod has processes of its own beside the guest (a remote console, libvirt); there, what a user excludes is theirs.
func inboundPorts(pod *corev1.Pod, s *state) (own, exclude []uint16) {
	exclude = union(s.capture.UserExcludedInboundPorts(), s.settings.ExcludeInboundPorts)
	if kubevirt.IsLauncher(pod.Labels) {
		return s.capture.OwnPorts, exclude
	}
	return union(s.capture.OwnPorts, exclude), nil
}

// relayUser is root in mode tproxy: no other user keeps the capability that its listener takes
// (docs/decisions/0013-tproxy-privileges.md).
func relayUser(m plan.Mode, c mesh.Capture) uint32 {
	if m == plan.TProxy {
		return 0
	}
	user := uint32(proxyUID)
	for user == c.UID || user == c.GID { // whose traffic passes by the mesh
		user++
	}
	return user
}

// podInterface is the interface that KubeVirt's bridge stands in for: it names the bridge after it.
func podInterface(s *state) string {
	if s.facts.VMI != nil && s.facts.VMI.PodInterface != "" {
		return s.facts.VMI.PodInterface
	}
	if name, ok := kubevirt.PodInterface(s.interfaces[0]); ok {
		return name
	}
	return "eth0"
}

// guest takes addresses from the annotation, else from the VMI, else KubeVirt's defaults; ports
// from the VMI, else from the ports of the container compute, where KubeVirt repeats them.
func guest(pod *corev1.Pod, s *state) plan.Guest {
	g := plan.Guest{IPv4: kubevirt.DefaultGuestIPv4, IPv6: kubevirt.DefaultGuestIPv6}
	vmi := s.facts.VMI
	if s.settings.GuestIPv4.IsValid() || s.settings.GuestIPv6.IsValid() {
		g.IPv4, g.IPv6 = s.settings.GuestIPv4, s.settings.GuestIPv6
	} else if vmi != nil {
		if vmi.IPv4.IsValid() {
			g.IPv4 = vmi.IPv4
		}
		if vmi.IPv6.IsValid() {
			g.IPv6 = vmi.IPv6
		}
	}
	if vmi != nil {
		g.TCP, g.UDP = vmi.TCP, vmi.UDP
		return g
	}
	if !kubevirt.IsLauncher(pod.Labels) {
		return g // the ports of an opted-in pod's containers are not the guest's
	}
	for _, c := range pod.Spec.Containers {
		if c.Name != "compute" {
			continue
		}
		for _, p := range c.Ports {
			switch r := plan.Port(uint16(p.ContainerPort)); p.Protocol {
			case corev1.ProtocolUDP:
				g.UDP = append(g.UDP, r)
			case corev1.ProtocolTCP, "":
				g.TCP = append(g.TCP, r)
			}
		}
	}
	return g
}

// drain keeps within the pod's grace period, less a margin for the kubelet's own work.
func drain(pod *corev1.Pod) int64 {
	const margin, kubernetesDefault = 5, 30
	grace := int64(kubernetesDefault)
	if pod.Spec.TerminationGracePeriodSeconds != nil {
		grace = *pod.Spec.TerminationGracePeriodSeconds
	}
	return min(drainSeconds, max(grace-margin, 0))
}

// union appends what is new in b, in order: what the mesh excludes comes first.
func union[T comparable](a, b []T) []T {
	out := slices.Clone(a)
	for _, e := range b {
		if !slices.Contains(out, e) {
			out = append(out, e)
		}
	}
	return out
}

// Package mesh reads what a service mesh left in a pod into a Capture: the arguments of an init container, by package
// cmdline, and the annotations that a CNI plug-in reads, of which it also says how they change. It decides nothing and
// does no I/O; it knows strings, not Kubernetes objects. Each mesh has files of its own.
package mesh

import (
	"net/netip"
	"slices"

	"github.com/meshvirt/meshvirt/pkg/plan"
)

// Interception says how connections to the pod are brought to the mesh's proxy.
type Interception string

// The interceptions, spelled as Istio spells them.
const (
	// InterceptionRedirect rewrites the destination (iptables REDIRECT). The proxy dials the
	// application from 127.0.0.6 or ::6.
	InterceptionRedirect Interception = "REDIRECT"
	// InterceptionTPROXY gives the packet as it is to a transparent socket. The proxy dials the
	// application from the client's address.
	InterceptionTPROXY Interception = "TPROXY"
	// InterceptionNone is what a pod says whose proxy is not to be reached by redirection. Istio's
	// program does not know the word and obeys its lists of ports and CIDRs as ever; with this mode
	// they are empty.
	InterceptionNone Interception = "NONE"
)

// Capture is what the redirection of the mesh in one pod looks like. Its lists are in the order in
// which the mesh was given them, without repetitions. Exclusions win over inclusions.
type Capture struct {
	// OutboundPort of the proxy takes connections that leave the pod, InboundPort those that enter.
	// TunnelPort (HBONE) is never redirected: who dials it wants the proxy itself.
	OutboundPort, InboundPort, TunnelPort uint16
	// UID and GID are those of the proxy, whose own traffic is not redirected.
	UID, GID uint32
	// Interception is how inbound connections reach the proxy.
	Interception Interception
	// TProxyMark is on packets that the mesh delivers in the pod whatever their destination, and on what its
	// proxy sends to the application; 0 unless Interception is TPROXY.
	TProxyMark uint32
	// CannotExclude says that the release cannot be told to leave an interface alone: before 1.11.
	CannotExclude bool

	// OutboundAll says that every destination not excluded goes to the proxy; IncludeOutboundCIDRs
	// is then empty. Otherwise only IncludeOutboundCIDRs go there, and with none no destination does.
	OutboundAll                                bool
	IncludeOutboundCIDRs, ExcludeOutboundCIDRs []netip.Prefix
	// IncludeOutboundPorts go to the proxy whatever the destination, ExcludeOutboundPorts never.
	IncludeOutboundPorts, ExcludeOutboundPorts []uint16

	// InboundAll says that every port not excluded goes to the proxy; IncludeInboundPorts is then
	// empty. Otherwise only IncludeInboundPorts go there and ExcludeInboundPorts has no effect.
	InboundAll                               bool
	IncludeInboundPorts, ExcludeInboundPorts []uint16

	// RerouteInterfaces are virtual interfaces whose incoming traffic the mesh takes for the pod's
	// outbound traffic. ExcludeInterfaces are those that the mesh leaves alone in both directions.
	RerouteInterfaces, ExcludeInterfaces []string

	// OwnPorts are ports on which the mesh's own containers serve the outside.
	OwnPorts []uint16
	// DialsLoopback says that the proxy dials the application at 127.0.0.1, not at the pod's address
	// alone: Istio before 1.10, whose release notes tell of the change.
	DialsLoopback bool
	// DualStack says that the mesh was told to write rules for both families.
	DualStack bool
	// DNS is set if the pod's DNS queries are captured.
	DNS *plan.DNS
	// NativeNFTables says that the mesh writes nftables rules by nft, not by iptables.
	NativeNFTables bool
	// DropInvalid says that the mesh drops packets that connection tracking calls invalid.
	DropInvalid bool
}

// UserExcludedInboundPorts are the inbound ports that pass by the proxy because somebody wants them
// to: ExcludeInboundPorts without OwnPorts, and none where exclusions have no effect.
func (c Capture) UserExcludedInboundPorts() []uint16 {
	if !c.InboundAll {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(c.ExcludeInboundPorts), func(p uint16) bool {
		return slices.Contains(c.OwnPorts, p)
	})
}

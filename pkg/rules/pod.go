package rules

import (
	"net/netip"

	"github.com/meshvirt/meshvirt/pkg/plan"
)

// Pod holds the facts that only the running pod knows; package keeper observes them.
type Pod struct {
	// IPv6 says that the mesh serves IPv6 here: its init put MeshLoopback6 on the loopback device.
	IPv6 bool
	// Nameservers are the pod's DNS servers, as package resolv reads them.
	Nameservers []netip.Addr
}

// ServesIPv6 reports whether the mesh takes connections over IPv6 in the pod: it does if it shows there, or was told to.
func (p Pod) ServesIPv6(m plan.Mesh) bool { return p.IPv6 || m.DualStack }

// MeshLoopback6 is the address that Istio's init and CNI plugin add to lo when they redirect IPv6.
// Envoy sends what is for the application from it, as it does from 127.0.0.6 in IPv4.
var MeshLoopback6 = netip.MustParseAddr("::6")

package rules

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/meshvirt/meshvirt/pkg/resolv"
)

// Pod holds the facts that only the running pod knows.
type Pod struct {
	// IPv6 says that the mesh serves IPv6 here: its init put ::6 on the loopback device.
	IPv6 bool
	// Nameservers are the pod's DNS servers, as package resolv reads them.
	Nameservers []netip.Addr
}

// meshLoopback6 is the address that Istio's init and CNI plugin add to lo when they redirect IPv6.
// Envoy sends what is for the application from it, as it does from 127.0.0.6 in IPv4.
var meshLoopback6 = netip.MustParseAddr("::6")

// Observe reads the facts about the pod whose network namespace the caller is in. A missing
// resolvConf means no nameservers.
func Observe(resolvConf string) (Pod, error) {
	var pod Pod
	lo, err := net.InterfaceByName("lo")
	if err != nil {
		return pod, fmt.Errorf("look at the loopback device: %w", err)
	}
	addrs, err := lo.Addrs()
	if err != nil {
		return pod, fmt.Errorf("look at the loopback device: %w", err)
	}
	pod.IPv6 = slices.ContainsFunc(addrs, func(a net.Addr) bool {
		p, err := netip.ParsePrefix(a.String())
		return err == nil && p.Addr() == meshLoopback6
	})
	pod.Nameservers, err = resolv.Nameservers(resolvConf)
	return pod, err
}

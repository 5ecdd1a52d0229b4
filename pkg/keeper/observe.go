package keeper

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/meshvirt/meshvirt/pkg/resolv"
	"github.com/meshvirt/meshvirt/pkg/rules"
)

// Observe reads the facts about the pod whose network namespace the caller is in. A missing
// resolvConf means no nameservers.
func Observe(resolvConf string) (rules.Pod, error) {
	var pod rules.Pod
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
		return err == nil && p.Addr() == rules.MeshLoopback6
	})
	pod.Nameservers, err = resolv.Nameservers(resolvConf)
	return pod, err
}

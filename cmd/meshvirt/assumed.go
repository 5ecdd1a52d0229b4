package main

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/rules"
)

// The DNS server's address in most clusters that kubeadm made, and in those of IPv6 alone that kind makes. Which the
// pod really has shows in its /etc/resolv.conf only.
var placeholderNameserver, placeholderNameserver6 = netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fd00:10:96::a")

// addresses are those of the pod's interface, as far as its status tells: none of a pod that does not run, or if
// meshvirt-rules may find another interface.
func addresses(pod *corev1.Pod, p plan.Plan) (all []netip.Prefix) {
	if p.WatchPort != 0 && p.Assumed.Interfaces {
		return nil
	}
	for _, ip := range pod.Status.PodIPs {
		if a, err := netip.ParseAddr(ip.IP); err == nil {
			all = append(all, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	return all
}

// only reports whether addresses are known, and all of one family.
func only(ips []netip.Prefix, family func(netip.Addr) bool) bool {
	return len(ips) > 0 && !slices.ContainsFunc(ips, func(p netip.Prefix) bool { return !family(p.Addr()) })
}

// assumptions name what the drawing and the rules rest on, and only the running pod shows.
func assumptions(p plan.Plan, pod rules.Pod, ips []netip.Prefix) (all []string) {
	found := "nothing looks for another, see annotation meshvirt.io/watch"
	if p.WatchPort != 0 {
		found = "meshvirt-rules looks for another"
	}
	if p.Assumed.Interfaces {
		all = append(all, fmt.Sprintf("the guest is behind %s, KubeVirt's default: %s", strings.Join(p.Interfaces, ","), found))
	}
	if p.Assumed.Guest {
		all = append(all, fmt.Sprintf("the guest is at %s and %s, KubeVirt's defaults: %s", p.Guest.IPv4, p.Guest.IPv6, found))
	}
	switch {
	case p.Mesh.DualStack: // the plan knows
	case only(ips, netip.Addr.Is6):
		all = append(all, "the mesh serves IPv6, the pod's only family: its init put ::6 on the loopback device")
	case only(ips, netip.Addr.Is4) && !pod.IPv6: // no IPv6 to serve
	case pod.IPv6:
		all = append(all, "the mesh serves IPv6 too (--ipv6): its init put ::6 on the loopback device")
	default:
		all = append(all, "the mesh serves IPv4 only: its init put no ::6 on the loopback device (--ipv6 assumes that it did)")
	}
	if p.Mesh.DNS != nil && !p.Mesh.DNS.All {
		all = append(all, fmt.Sprintf("the pod's nameserver is %s: a placeholder, /etc/resolv.conf of the pod decides", pod.Nameservers[0]))
	}
	switch p.Mode {
	case plan.Native:
		all = append(all, "KubeVirt's rules are those of its Istio mode: the VMI has the annotation sidecar.istio.io/inject")
	case plan.TProxy:
		all = append(all, "packets of bridges pass the IP hooks (bridge-nf-call-iptables), as on nodes of Kubernetes")
	}
	return all
}

package rules

import "net/netip"

// The guard keeps the guest out of the pod that it runs in, and from posing as somebody else
// (docs/isolation.md). The pod's loopback holds the admin interface of the mesh's proxy
// (127.0.0.1:15000, which can stop it), and KubeVirt sets route_localnet on the virtual interface, so
// that a guest's packet to 127.0.0.1 would be answered.
//
// Its rules look at one packet of the guest's at a time, and trust nothing that the guest may choose
// but the interface that the packet comes in by.
func (b *builder) guard() {
	// Before connection tracking and so before any translation: a later one to 127.0.0.1, such as
	// the capture of DNS, still works.
	b.guardAddresses(b.chain("guard_addresses", rawPrerouting))

	// After connection tracking, since replies must pass: what the mesh's proxy sends to the guest
	// comes from an address of the pod.
	mangle := b.chain("guard_pod", manglePrerouting)
	mangle.add("no connection: it would pass every translation", b.fromVirtual, ctInvalid, countedDrop)
	// An ICMP error needs no more than ports and addresses to break a connection over UDP.
	mangle.add("an error about a connection that is not the guest's", b.fromVirtual, ctRelated, toPodItself, notToThisSide, countedDrop)
	toPod := b.chain("guest_to_pod", nil)
	mangle.add("only what is new, replies pass", b.fromVirtual, ctNew, toPodOrAll, jump(toPod))

	for _, w := range b.queryWays() {
		toPod.add(w.why, append(w.query, accept)...)
	}
	for _, to := range []word{toThisSide, toBroadcast} {
		toPod.add("KubeVirt's DHCP server", to, udpDport.is(port(dhcpPort)), accept)
	}
	for _, to := range []word{toThisSide, toMulticast} {
		toPod.add("KubeVirt's DHCPv6 server", to, udpDport.is(port(dhcp6Port)), accept)
	}
	toPod.add("the gateway serves nothing else", toThisSide, tcp, countedDrop)
	toPod.add("the mesh's own ports are not for the guest", tcpDport.in(b.reserved), countedDrop)
	toPod.add("the guest itself may be at the other ports", toPodItself, tcp, accept)
	toPod.add("ICMP is left alone", icmp, accept)
	toPod.add("ICMPv6 is left alone", icmp6, accept)
	toPod.add("the pod serves the guest nothing else", countedDrop)
}

// Ports of DHCP servers (RFC 2131, RFC 8415).
const (
	dhcpPort  = 67
	dhcp6Port = 547
)

// guardAddresses refuses destinations and sources that no packet of a guest may have.
func (b *builder) guardAddresses(raw *chain) {
	for _, f := range families {
		raw.add("the pod's loopback is not for the guest", b.fromVirtual, f.daddr.in(f.inside), countedDrop)
	}
	// Explicitly, since not every kernel sees that these have no route back.
	raw.add("DHCP before there is an address", b.fromVirtual, ipv4.saddr.is(address(netip.IPv4Unspecified())), udpDport.is(port(dhcpPort)), accept)
	raw.add("neighbour discovery before there is an address", b.fromVirtual, ipv6.saddr.is(address(netip.IPv6Unspecified())), icmp6, accept)

	// Whatever the guest's address, the way back to it is the interface. The pod's own addresses, its
	// loopback, its peers and the kubelet are elsewhere.
	raw.add("no guest may pose as somebody who is not behind its interface", b.fromVirtual, noWayBack, countedDrop)
	if len(b.Interfaces) > 1 {
		return // the plan has the guest's address on one of them
	}
	// KubeVirt masquerades the guest's own address alone: any other would leave the pod as it is.
	for _, f := range families {
		if a := b.guest(f); a.IsValid() {
			own := append([]netip.Prefix{netip.PrefixFrom(a, a.BitLen())}, f.onLink...)
			raw.add("no guest may pose as its own neighbour", b.fromVirtual, f.saddr.notIn(newPrefixSet("guest"+f.digit, "from where the guest may send", own...)), countedDrop)
		}
	}
}

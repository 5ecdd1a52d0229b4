package rules

// The guard keeps the guest out of the pod that it runs in. The pod's loopback holds the admin
// interface of the mesh's proxy (127.0.0.1:15000, which can stop it), and KubeVirt sets
// route_localnet on the virtual interface, so that a guest's packet to 127.0.0.1 would be answered.
func (b *builder) guard() {
	// Before connection tracking and so before any translation: a later one to 127.0.0.1, such as
	// the capture of DNS, still works.
	raw := b.chain("guard_loopback", rawPrerouting)
	for _, f := range families {
		raw.add("the pod's loopback is not for the guest", b.fromVirtual, f.daddr.in(f.loopback), countedDrop)
		raw.add("no guest may pose as the pod's loopback", b.fromVirtual, f.saddr.in(f.loopback), countedDrop)
	}

	// After connection tracking, since replies must pass: what the mesh's proxy sends to the guest
	// comes from an address of the pod. ICMP is left alone.
	mangle := b.chain("guard_pod", manglePrerouting)
	toPod := b.chain("guest_to_pod", nil)
	mangle.add("only what is new, replies pass", b.fromVirtual, ctNew, toPodItself, jump(toPod))

	b.eachCapturedQuery(func(why string, query ...word) { toPod.add(why, append(query, accept)...) })
	toPod.add("KubeVirt's DHCP server", toThisSide, udpDport.is(port(67)), accept)
	toPod.add("KubeVirt's DHCPv6 server", toThisSide, udpDport.is(port(547)), accept)
	toPod.add("the gateway serves nothing else", toThisSide, tcp, countedDrop)
	toPod.add("the mesh's own ports are not for the guest", tcpDport.in(b.reserved), countedDrop)
	toPod.add("the pod serves the guest no UDP", udp, countedDrop)
}

package rules

import "net/netip"

// fromOutside decides about every connection from the network to the pod.
func (b *builder) fromOutside() *chain {
	c := b.chain("from_outside", nil)
	exclude := newPortSet("exclude_in_ports", "excludeInboundPorts", portTableOf(b.Inbound.ExcludePorts).without(portTableOf(b.ownPorts)))
	for _, f := range families {
		c.add("an excluded port goes straight to the guest", tcpDport.in(exclude), b.toGuest(f))
		// KubeVirt may forward every port of the pod to the guest, also that of the mesh's health check.
		c.add("the mesh's own port stays with the mesh", tcpDport.in(b.own), f.freeze())
	}

	intoMesh := func(why string, match word) { c.add(why, b.meshIPv, match, redirect(b.Mesh.InboundPort)) }
	if b.Mesh.TProxyMark != 0 { // the mesh has its packets already, and nobody else may take them
		intoMesh = func(why string, match word) {
			for _, f := range b.served {
				c.add(why, match, f.freeze())
			}
		}
	}
	if b.Inbound.All {
		intoMesh("TCP comes in through the mesh", tcp)
	} else {
		include := newPortSet("include_in_ports", "includeInboundPorts", portTableOf(b.Inbound.IncludePorts))
		intoMesh("an included port comes in through the mesh", tcpDport.in(include))
		for _, f := range b.served {
			c.add("a port that is not included goes straight to the guest", b.guestTCP, b.toGuest(f))
		}
	}
	for _, f := range families[len(b.served):] {
		// In its Istio mode KubeVirt would forward nothing but port 22.
		c.add("the mesh does not serve this family", b.guestTCP, b.toGuest(f))
	}
	for _, f := range families {
		c.add("no mesh takes UDP", b.guestUDP, b.toGuest(f))
	}
	return c
}

// meshSource is the address from which the mesh's proxy dials what it takes for the application.
func meshSource(f family) netip.Addr {
	if f.l3 == ipv4.l3 {
		return netip.AddrFrom4([4]byte{127, 0, 0, 6})
	}
	return meshLoopback6
}

// loopback4 is where the first releases of Istio take the application to listen.
var loopback4 = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// toSelf decides about connections of the pod to its own address, where the guest is the
// application. deliver says how one that the mesh's proxy lets in reaches the guest.
func (b *builder) toSelf(c *chain, deliver func(family) word) {
	for _, f := range b.served {
		c.add("the mesh's proxy lets it in to the guest", b.onLoopback, f.saddr.is(address(meshSource(f))), b.guestTCP, deliver(f))
	}
	if b.Mesh.DialsLoopback {
		c.add("the mesh's proxy lets it in to the guest, at 127.0.0.1 where the application would be",
			b.onLoopback, ipv4.daddr.is(address(loopback4)), b.byMesh, b.guestAtPod(), deliver(ipv4))
	}
	b.othersToSelf(c)
}

// guestAtPod matches ports that the pod's own processes take for the guest's.
func (b *builder) guestAtPod() word {
	if b.Guest.AllPorts() {
		return tcpDport.notIn(b.reserved)
	}
	return b.guestTCP
}

// othersToSelf is toSelf for all but the mesh's proxy.
func (b *builder) othersToSelf(c *chain) {
	for _, f := range families {
		// Not the proxy's own: the guest's connection to the pod goes out and in through it.
		c.add("the pod's processes find the guest at the pod's address",
			b.onLoopback, f.daddr.notIn(f.loopback), b.byOthers, b.guestAtPod(), b.toGuest(f))
	}
}

// toVirtualSide gives packets to the guest a source that it can answer.
func (b *builder) toVirtualSide() {
	post := b.chain("postrouting", natPostrouting)
	for _, f := range families {
		post.add("a guest cannot answer to the pod's loopback", b.toVirtual, f.saddr.in(f.loopback), masquerade)
	}
}

// probed keeps the ports of our own containers with them, by whatever interface their probes come, which need not be
// PodInterface as planned. Else the mesh would redirect them, to a proxy that starts only when they have.
func (b *builder) probed() {
	ports := []uint16{b.WatchPort} // 0 is none
	if b.Proxy != nil {
		ports = append(ports, b.Proxy.StatusPort)
	}
	c := b.chain("probed", natPrerouting)
	own := newPortSet("probed_ports", "of MeshVirt's containers", portTableOf(ports))
	for _, f := range families {
		c.add("a probe of our own, by whatever interface", toPodItself, tcpDport.in(own), f.freeze())
	}
}

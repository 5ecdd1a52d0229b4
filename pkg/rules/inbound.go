package rules

import (
	"net/netip"

	"github.com/meshvirt/meshvirt/pkg/nft"
)

// fromOutside decides about every connection from the network to the pod.
func (b *builder) fromOutside() *nft.Chain {
	c := b.chain("from_outside", nil)
	exclude := nft.PortSet("exclude_in_ports", "excludeInboundPorts", nft.PortsOf(b.Inbound.ExcludePorts).Without(nft.PortsOf(b.ownPorts)))
	for _, f := range families {
		c.Add("an excluded port goes straight to the guest", nft.TCPDport.In(exclude), b.toGuest(f))
		// KubeVirt may forward every port of the pod to the guest, also that of the mesh's health check.
		c.Add("the mesh's own port stays with the mesh", nft.TCPDport.In(b.own), f.Freeze())
	}

	intoMesh := func(why string, match nft.Word) { c.Add(why, b.meshIPv, match, nft.Redirect(b.Mesh.InboundPort)) }
	if b.Mesh.TProxyMark != 0 { // the mesh has its packets already, and nobody else may take them
		intoMesh = func(why string, match nft.Word) {
			for _, f := range b.served {
				c.Add(why, match, f.Freeze())
			}
		}
	}
	if b.Inbound.All {
		intoMesh("TCP comes in through the mesh", nft.TCP)
	} else {
		include := nft.PortSet("include_in_ports", "includeInboundPorts", nft.PortsOf(b.Inbound.IncludePorts))
		intoMesh("an included port comes in through the mesh", nft.TCPDport.In(include))
		for _, f := range b.served {
			c.Add("a port that is not included goes straight to the guest", b.guestTCP, b.toGuest(f))
		}
	}
	for _, f := range families[len(b.served):] {
		// In its Istio mode KubeVirt would forward nothing but port 22.
		c.Add("the mesh does not serve this family", b.guestTCP, b.toGuest(f))
	}
	for _, f := range families {
		c.Add("no mesh takes UDP", b.guestUDP, b.toGuest(f))
	}
	return c
}

// meshSource is the address from which the mesh's proxy dials what it takes for the application.
func meshSource(f *nft.Family) netip.Addr {
	if f == nft.IPv4 {
		return netip.AddrFrom4([4]byte{127, 0, 0, 6})
	}
	return MeshLoopback6
}

// loopback4 is where the first releases of Istio take the application to listen.
var loopback4 = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// toSelf decides about connections of the pod to its own address, where the guest is the
// application. deliver says how one that the mesh's proxy lets in reaches the guest.
func (b *builder) toSelf(c *nft.Chain, deliver func(*nft.Family) nft.Word) {
	for _, f := range b.served {
		c.Add("the mesh's proxy lets it in to the guest", b.onLoopback, f.Saddr.Is(nft.Addr(meshSource(f))), b.guestTCP, deliver(f))
	}
	if b.Mesh.DialsLoopback {
		c.Add("the mesh's proxy lets it in to the guest, at 127.0.0.1 where the application would be",
			b.onLoopback, nft.IPv4.Daddr.Is(nft.Addr(loopback4)), b.byMesh, b.guestAtPod(), deliver(nft.IPv4))
	}
	b.othersToSelf(c)
}

// guestAtPod matches ports that the pod's own processes take for the guest's.
func (b *builder) guestAtPod() nft.Word {
	if b.Guest.AllPorts() {
		return nft.TCPDport.NotIn(b.reserved)
	}
	return b.guestTCP
}

// othersToSelf is toSelf for all but the mesh's proxy.
func (b *builder) othersToSelf(c *nft.Chain) {
	for _, f := range families {
		// Not the proxy's own: the guest's connection to the pod goes out and in through it.
		c.Add("the pod's processes find the guest at the pod's address",
			b.onLoopback, f.Daddr.NotIn(loopback.Of(f)), b.byOthers, b.guestAtPod(), b.toGuest(f))
	}
}

// toVirtualSide gives packets to the guest a source that it can answer.
func (b *builder) toVirtualSide() {
	post := b.chain("postrouting", natPostrouting)
	for _, f := range families {
		post.Add("a guest cannot answer to the pod's loopback", b.toVirtual, f.Saddr.In(loopback.Of(f)), nft.Masquerade)
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
	own := nft.PortSet("probed_ports", "of MeshVirt's containers", nft.PortsOf(ports))
	for _, f := range families {
		c.Add("a probe of our own, by whatever interface", toPodItself, nft.TCPDport.In(own), f.Freeze())
	}
}

package rules

import "github.com/meshvirt/meshvirt/pkg/nft"

// natProxy leads the guest's connections to our proxy, which dials their destination from inside
// the pod, so that the redirection of any mesh catches it; and those that the mesh's proxy lets in
// to our proxy as well, which dials the guest.
func natProxy(b *builder) { b.relay(nft.Redirect(b.Proxy.OutboundPort)) }

// relay is what nat-proxy and tproxy share: all but how the guest's connections get to our proxy.
func (b *builder) relay(toProxy nft.Word) {
	pre := b.chain("prerouting", natPrerouting)
	fromGuest := b.fromGuest(
		// The proxy refuses to dial the pod itself; the mesh knows how to loop such a call back.
		way{why: ", to the pod itself without our proxy", to: []nft.Word{toPodItself, nft.Redirect(b.Mesh.OutboundPort)}},
		way{why: ", by our proxy", to: []nft.Word{toProxy}},
	)
	fromOutside := b.fromOutside()
	pre.Add("what the guest opens", b.fromVirtual, nft.Jump(fromGuest))
	pre.Add("what comes to the pod", b.fromNetwork, toPodItself, nft.Jump(fromOutside))

	out := b.chain("output", natOutput)
	b.intercepted(out)
	b.toSelf(out, func(*nft.Family) nft.Word { return nft.Redirect(b.Proxy.InboundPort) })
	for _, f := range families {
		// Else the mesh's redirection takes the proxy's call for one that leaves the pod.
		out.Add("our proxy's call to the guest is not the mesh's", b.toVirtual, f.Daddr.Is(nft.Addr(b.guest(f))), nft.TCP, f.Freeze())
	}
	b.toVirtualSide()
}

package rules

import "github.com/meshvirt/meshvirt/pkg/nft"

// rules leads the guest's connections to the port to which the mesh redirects the pod's own, and
// the mesh's inbound proxy to the guest, all in the kernel.
func rules(b *builder) {
	pre := b.chain("prerouting", natPrerouting)
	fromGuest := b.fromGuest(way{to: []nft.Word{nft.Redirect(b.Mesh.OutboundPort)}})
	fromOutside := b.fromOutside()
	pre.Add("what the guest opens", b.fromVirtual, nft.Jump(fromGuest))
	pre.Add("what comes to the pod", b.fromNetwork, toPodItself, nft.Jump(fromOutside))

	out := b.chain("output", natOutput)
	b.intercepted(out)
	b.toSelf(out, b.toGuest)
	b.toVirtualSide()
}

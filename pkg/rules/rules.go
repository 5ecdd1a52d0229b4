package rules

// rules leads the guest's connections to the port to which the mesh redirects the pod's own, and
// the mesh's inbound proxy to the guest, all in the kernel.
func rules(b *builder) {
	pre := b.chain("prerouting", natPrerouting)
	fromGuest := b.fromGuest(way{to: []word{redirect(b.Mesh.OutboundPort)}})
	fromOutside := b.fromOutside()
	pre.add("what the guest opens", b.fromVirtual, jump(fromGuest))
	pre.add("what comes to the pod", b.fromNetwork, toPodItself, jump(fromOutside))

	out := b.chain("output", natOutput)
	b.intercepted(out)
	b.toSelf(out, b.toGuest)
	b.toVirtualSide()
}

package rules

// natProxy leads the guest's connections to our proxy, which dials their destination from inside
// the pod, so that the redirection of any mesh catches it; and those that the mesh's proxy lets in
// to our proxy as well, which dials the guest.
func natProxy(b *builder) { b.relay(redirect(b.Proxy.OutboundPort)) }

// relay is what nat-proxy and tproxy share: all but how the guest's connections get to our proxy.
func (b *builder) relay(toProxy word) {
	pre := b.chain("prerouting", natPrerouting)
	fromGuest := b.fromGuest(
		// The proxy refuses to dial the pod itself; the mesh knows how to loop such a call back.
		way{why: ", to the pod itself without our proxy", to: []word{toPodItself, redirect(b.Mesh.OutboundPort)}},
		way{why: ", by our proxy", to: []word{toProxy}},
	)
	fromOutside := b.fromOutside()
	pre.add("what the guest opens", b.fromVirtual, jump(fromGuest))
	pre.add("what comes to the pod", b.fromNetwork, toPodItself, jump(fromOutside))

	out := b.chain("output", natOutput)
	b.intercepted(out)
	b.toSelf(out, func(family) word { return redirect(b.Proxy.InboundPort) })
	for _, f := range families {
		// Else the mesh's redirection takes the proxy's call for one that leaves the pod.
		out.add("our proxy's call to the guest is not the mesh's", b.toVirtual, f.daddr.is(address(b.guest(f))), tcp, f.freeze())
	}
	b.toVirtualSide()
}

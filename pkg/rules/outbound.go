package rules

// A way leads a connection of the guest into the mesh: to where, for what, and why.
type way struct {
	why string
	to  []word
}

// fromGuest decides about every TCP connection that the guest opens, with one of three results: a
// way into the mesh (the first that matches), straight out, or nothing, which leaves it to KubeVirt.
func (b *builder) fromGuest(ways ...way) *chain {
	c := b.chain("from_guest", nil)
	intoMesh := func(what string, match ...word) {
		for _, w := range ways {
			c.add(what+w.why, append(match[:len(match):len(match)], w.to...)...)
		}
	}
	b.captureDNS(c, intoMesh)

	excludePorts := newPortSet("exclude_out_ports", "excludeOutboundPorts", portTableOf(b.Outbound.ExcludePorts))
	exclude := newPrefixPair("exclude_out", "excludeOutboundIPRanges", b.Outbound.ExcludeCIDRs)
	for _, f := range families {
		c.add("an excluded port goes straight out", tcpDport.in(excludePorts), f.freeze())
		c.add("an excluded address goes straight out", f.daddr.in(exclude.of(f)), tcp, f.freeze())
	}

	if b.Outbound.All {
		intoMesh("TCP goes into the mesh", b.meshIPv, tcp)
		return c
	}
	includePorts := newPortSet("include_out_ports", "includeOutboundPorts", portTableOf(b.Outbound.IncludePorts))
	include := newPrefixPair("include_out", "includeOutboundIPRanges", b.Outbound.IncludeCIDRs)
	intoMesh("an included port goes into the mesh", b.meshIPv, tcpDport.in(includePorts))
	for _, f := range b.served {
		intoMesh("an included address goes into the mesh", f.daddr.in(include.of(f)), tcp)
	}
	for _, f := range b.served {
		c.add("what is not included goes straight out", tcp, f.freeze())
	}
	return c
}

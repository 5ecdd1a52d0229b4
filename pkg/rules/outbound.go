package rules

import "github.com/meshvirt/meshvirt/pkg/nft"

// A way leads a connection of the guest into the mesh: to where, for what, and why.
type way struct {
	why string
	to  []nft.Word
}

// fromGuest decides about every TCP connection that the guest opens, with one of three results: a
// way into the mesh (the first that matches), straight out, or nothing, which leaves it to KubeVirt.
func (b *builder) fromGuest(ways ...way) *nft.Chain {
	c := b.chain("from_guest", nil)
	intoMesh := func(what string, match ...nft.Word) {
		for _, w := range ways {
			c.Add(what+w.why, append(match[:len(match):len(match)], w.to...)...)
		}
	}
	b.captureDNS(c, intoMesh)

	excludePorts := nft.PortSet("exclude_out_ports", "excludeOutboundPorts", nft.PortsOf(b.Outbound.ExcludePorts))
	exclude := nft.PrefixPair("exclude_out", "excludeOutboundIPRanges", b.Outbound.ExcludeCIDRs)
	for _, f := range families {
		c.Add("an excluded port goes straight out", nft.TCPDport.In(excludePorts), f.Freeze())
		c.Add("an excluded address goes straight out", f.Daddr.In(exclude.Of(f)), nft.TCP, f.Freeze())
	}

	if b.Outbound.All {
		intoMesh("TCP goes into the mesh", b.meshIPv, nft.TCP)
		return c
	}
	includePorts := nft.PortSet("include_out_ports", "includeOutboundPorts", nft.PortsOf(b.Outbound.IncludePorts))
	include := nft.PrefixPair("include_out", "includeOutboundIPRanges", b.Outbound.IncludeCIDRs)
	intoMesh("an included port goes into the mesh", b.meshIPv, nft.TCPDport.In(includePorts))
	for _, f := range b.served {
		intoMesh("an included address goes into the mesh", f.Daddr.In(include.Of(f)), nft.TCP)
	}
	for _, f := range b.served {
		c.Add("what is not included goes straight out", nft.TCP, f.Freeze())
	}
	return c
}

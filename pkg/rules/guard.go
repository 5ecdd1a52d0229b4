package rules

import (
	"net/netip"

	"github.com/meshvirt/meshvirt/pkg/nft"
)

// The guard keeps the guest out of the pod that it runs in, and from posing as somebody else
// (docs/isolation.md). The pod's loopback holds the admin interface of the mesh's proxy
// (127.0.0.1:15000, which can stop it), and KubeVirt sets route_localnet on the virtual interface, so
// that a guest's packet to 127.0.0.1 would be answered.
//
// Its rules look at one packet of the guest's at a time, and trust nothing that the guest may choose
// but the interface that the packet comes in by. That is asked once in each place: every packet of the pod
// passes there, several times if the mesh's proxy relays it.
func (b *builder) guard() {
	// Before connection tracking and so before any translation: a later one to 127.0.0.1, such as
	// the capture of DNS, still works.
	b.guardAddresses(b.fromGuestOnly("guard_addresses", rawPrerouting, "guest_addresses"))

	// After connection tracking, since replies must pass: what the mesh's proxy sends to the guest
	// comes from an address of the pod.
	mangle := b.fromGuestOnly("guard_pod", manglePrerouting, "guest_connections")
	mangle.Add("most packets, soon done", nft.CtEstablished, nft.Accept)
	mangle.Add("no connection: it would pass every translation", nft.CtInvalid, nft.CountedDrop)
	// An ICMP error needs no more than ports and addresses to break a connection over UDP.
	mangle.Add("an error about a connection that is not the guest's", nft.CtRelated, toPodItself, notToThisSide, nft.CountedDrop)
	toPod := b.chain("guest_to_pod", nil)
	mangle.Add("only what is new, replies pass", nft.CtNew, toPodOrAll, nft.Jump(toPod))

	for _, w := range b.queryWays() {
		toPod.Add(w.why, append(w.query, nft.Accept)...)
	}
	for _, to := range []nft.Word{toThisSide, toBroadcast} {
		toPod.Add("KubeVirt's DHCP server", to, nft.UDPDport.Is(nft.Port(dhcpPort)), nft.Accept)
	}
	for _, to := range []nft.Word{toThisSide, toMulticast} {
		toPod.Add("KubeVirt's DHCPv6 server", to, nft.UDPDport.Is(nft.Port(dhcp6Port)), nft.Accept)
	}
	toPod.Add("the gateway serves nothing else", toThisSide, nft.TCP, nft.CountedDrop)
	toPod.Add("the mesh's own ports are not for the guest", nft.TCPDport.In(b.reserved), nft.CountedDrop)
	toPod.Add("the guest itself may be at the other ports", toPodItself, nft.TCP, nft.Accept)
	toPod.Add("ICMP is left alone", nft.ICMP, nft.Accept)
	toPod.Add("ICMPv6 is left alone", nft.ICMPv6, nft.Accept)
	toPod.Add("the pod serves the guest nothing else", nft.CountedDrop)
}

// Ports of DHCP servers (RFC 2131, RFC 8415).
const (
	dhcpPort  = 67
	dhcp6Port = 547
)

// fromGuestOnly starts a chain at a place, and gives the one for what the guest sends.
func (b *builder) fromGuestOnly(name string, at *nft.Base, inner string) *nft.Chain {
	base, guests := b.chain(name, at), b.chain(inner, nil)
	base.Add("what the guest sends", b.fromVirtual, nft.Jump(guests))
	return guests
}

// guardAddresses refuses destinations and sources that no packet of a guest may have.
func (b *builder) guardAddresses(raw *nft.Chain) {
	for _, f := range families {
		raw.Add("the pod's loopback is not for the guest", f.Daddr.In(inside.Of(f)), nft.CountedDrop)
	}
	// With several interfaces the plan has the guest's address on one of them.
	known := func(f *nft.Family) bool { return len(b.Interfaces) == 1 && b.guest(f).IsValid() }
	for _, f := range families {
		if known(f) {
			raw.Add("the guest, soon done", f.Saddr.Is(nft.Addr(b.guest(f))), nft.Accept)
		}
	}
	// Explicitly, since not every kernel sees that these have no route back.
	raw.Add("DHCP before there is an address", nft.IPv4.Saddr.Is(nft.Addr(netip.IPv4Unspecified())), nft.UDPDport.Is(nft.Port(dhcpPort)), nft.Accept)
	raw.Add("neighbour discovery before there is an address", nft.IPv6.Saddr.Is(nft.Addr(netip.IPv6Unspecified())), nft.ICMPv6, nft.Accept)

	// Whatever the guest's address, the way back to it is the interface. The pod's own addresses, its
	// loopback, its peers and the kubelet are elsewhere.
	raw.Add("no guest may pose as somebody who is not behind its interface", nft.NoWayBack, nft.CountedDrop)
	// KubeVirt masquerades the guest's own address alone: any other would leave the pod as it is.
	for _, f := range families {
		if known(f) {
			a := b.guest(f)
			own := []netip.Prefix{netip.PrefixFrom(a, a.BitLen())}
			if f == nft.IPv6 {
				own = append(own, onLink)
			}
			raw.Add("no guest may pose as its own neighbour", f.Saddr.NotIn(nft.PrefixSet("guest"+f.Digit, "from where the guest may send", own...)), nft.CountedDrop)
		}
	}
}

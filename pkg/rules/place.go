package rules

import (
	"net/netip"

	"github.com/meshvirt/meshvirt/pkg/nft"
)

// The places of our chains, one step before everybody else's. The kernel's names of priorities: raw is -300 and comes
// before connection tracking (-200), mangle is -150, dstnat is -100, srcnat is 100. Of two nat chains of
// the same priority the one made last runs first, so one step is what makes the order certain.
var (
	rawPrerouting    = &nft.Base{Hook: nft.Prerouting, Priority: -301}
	rawOutput        = &nft.Base{Hook: nft.Output, Priority: -301}
	manglePrerouting = &nft.Base{Hook: nft.Prerouting, Priority: -151}
	// mangledPrerouting and mangleOutput are where the mesh's TPROXY has been.
	mangledPrerouting = &nft.Base{Hook: nft.Prerouting, Priority: -149}
	mangleOutput      = &nft.Base{Hook: nft.Output, Priority: -149}
	natPrerouting     = &nft.Base{Hook: nft.Prerouting, NAT: true, Priority: -101}
	natOutput         = &nft.Base{Hook: nft.Output, NAT: true, Priority: -101}
	forward           = &nft.Base{Hook: nft.Forward, Priority: 0}
	natPostrouting    = &nft.Base{Hook: nft.Postrouting, NAT: true, Priority: 99}
)

// What a packet is for, as the pod's routing sees it.
var (
	// toPodItself is for an address of the pod, on whatever interface.
	toPodItself = nft.FibDaddr.Is(nft.Local)
	// toThisSide is for an address of the interface that it came in by, such as the guest's gateway.
	toThisSide    = nft.FibDaddrIif.Is(nft.Local)
	notToThisSide = nft.FibDaddrIif.Not(nft.Local)
	toBroadcast   = nft.FibDaddr.Is(nft.Broadcast)
	toMulticast   = nft.FibDaddr.Is(nft.Multicast)
	// toPodOrAll is for an address of the pod, and for one that the pod has with others.
	toPodOrAll = nft.FibDaddr.Not(nft.Unicast)
)

var (
	// loopback is where the pod's processes talk to each other, never the guest.
	loopback = nft.Pair{
		V4: nft.PrefixSet("loopback4", "where the pod talks to itself", netip.MustParsePrefix("127.0.0.0/8")),
		V6: nft.PrefixSet("loopback6", "where the pod talks to itself; ::6 is the mesh's",
			netip.MustParsePrefix("::1/128"), netip.MustParsePrefix("::6/128")),
	}
	// inside is loopback, and what a process of the pod that dials it would find there.
	inside = nft.Pair{
		V4: nft.PrefixSet("inside4", "the pod's loopback, and addresses that lead whoever dials them there",
			netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("0.0.0.0/8")),
		V6: nft.PrefixSet("inside6", "the pod's loopback, and addresses that lead whoever dials them there; IPv4 in disguise",
			netip.MustParsePrefix("::/128"), netip.MustParsePrefix("::1/128"), netip.MustParsePrefix("::6/128"), netip.MustParsePrefix("::ffff:0:0/96")),
	}
	// onLink is from where everybody may send to its link.
	onLink = netip.MustParsePrefix("fe80::/10")
)

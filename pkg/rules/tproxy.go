package rules

import (
	"math"

	"github.com/meshvirt/meshvirt/pkg/nft"
)

// RelayMark is the bit of mode tproxy, in a connection's mark ("our proxy takes it") and in a
// packet's ("deliver it here", for the policy route). One bit, set and tested under a mask, leaves
// the marks of others in the pod alone: Istio's 1337 (0x539, TPROXY and ztunnel) and 0x111 (ambient).
const RelayMark = 0x20000

// The places of the rules that give a packet to our proxy's socket.
//
// Where a bridge's packets are seen by the IP hooks (bridge-nf-call-iptables, the default wherever
// br_netfilter is loaded, as on nodes of Kubernetes), they run prerouting twice: at the bridge, after
// which the kernel takes the socket off the packet again, and as IP packets, where br_netfilter stops
// every hook behind its own, which has the lowest priority there is. Of equal priorities the hook
// made last runs first: bridgedPrerouting, made after the first bridge, is the only one that runs in
// the second pass. The packet then carries the connection that the first pass has decided about.
//
// Without br_netfilter there is one pass, and a packet's connection is known to afterNAT only.
var (
	bridgedPrerouting = &nft.Base{Hook: nft.Prerouting, Priority: math.MinInt32}
	afterNAT          = &nft.Base{Hook: nft.Prerouting, Priority: -99}
)

// tProxy is natProxy, but the guest's connections keep their destination on the way to our proxy: the
// nat chain only marks and freezes them, once per connection, and TPROXY gives their packets to the
// proxy's socket. What is not marked (excluded, to the pod, replies of the guest) is as in natProxy.
func tProxy(b *builder) {
	mark := b.chain("mark_for_proxy", nil)
	for _, f := range b.served {
		mark.Add("our proxy takes the connection, nobody else may redirect it", f.Any, nft.OrCtMark(RelayMark), f.Freeze())
	}
	b.relay(nft.Jump(mark))

	give := b.chain("give_to_proxy", nil)
	for _, f := range b.served {
		give.Add("to the socket of our proxy", f.Any, nft.TCP, f.TProxy(b.Proxy.OutboundPort), nft.OrMark(RelayMark), nft.Accept)
	}
	relayed := []nft.Word{b.fromVirtual, nft.CtMark(RelayMark), nft.CtOriginal}
	to := func(why string, at *nft.Chain, verdict ...nft.Word) {
		at.Add(why, append(relayed[:3:3], verdict...)...)
	}
	to("as an IP packet, after the bridge has let go of it", b.chain("proxy_bridged", bridgedPrerouting), nft.Jump(give))
	to("where the bridge's packets are not seen by IP hooks", b.chain("proxy_unbridged", afterNAT), nft.Jump(give))

	// No proxy, no policy route yet, or hooks in the wrong order: nothing may get past the mesh. (In the
	// wrong order a SYN may reach a server of the pod that listens on every address, but no more: of
	// the socket that it makes TPROXY says that it may not have such an address.)
	to("our proxy is not there: not past the mesh", b.chain("proxy_forward", forward), nft.CountedDrop)
}

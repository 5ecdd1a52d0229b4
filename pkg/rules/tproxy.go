package rules

import (
	"fmt"
	"math"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
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
	bridgedPrerouting = &base{fmt.Sprintf("filter hook prerouting priority %d", math.MinInt32), nftables.ChainTypeFilter, nftables.ChainHookPrerouting, math.MinInt32}
	afterNAT          = &base{"filter hook prerouting priority dstnat + 1", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, -99}
)

// tProxy is natProxy, but the guest's connections keep their destination on the way to our proxy: the
// nat chain only marks and freezes them, once per connection, and TPROXY gives their packets to the
// proxy's socket. What is not marked (excluded, to the pod, replies of the guest) is as in natProxy.
func tProxy(b *builder) {
	mark := b.chain("mark_for_proxy", nil)
	for _, f := range b.served {
		mark.add("our proxy takes the connection, nobody else may redirect it", f.word, setCtMark(RelayMark), f.freeze())
	}
	b.relay(jump(mark))

	give := b.chain("give_to_proxy", nil)
	for _, f := range b.served {
		give.add("to the socket of our proxy", f.word, tcp, f.tproxy(b.Proxy.OutboundPort), setMark(RelayMark), accept)
	}
	relayed := []word{b.fromVirtual, ctMark(RelayMark), ctOriginal}
	to := func(why string, at *chain, verdict ...word) { at.add(why, append(relayed[:3:3], verdict...)...) }
	to("as an IP packet, after the bridge has let go of it", b.chain("proxy_bridged", bridgedPrerouting), jump(give))
	to("where the bridge's packets are not seen by IP hooks", b.chain("proxy_unbridged", afterNAT), jump(give))

	// No proxy, no policy route yet, or hooks in the wrong order: nothing may get past the mesh. (In the
	// wrong order a SYN may reach a server of the pod that listens on every address, but no more: of
	// the socket that it makes TPROXY says that it may not have such an address.)
	to("our proxy is not there: not past the mesh", b.chain("proxy_forward", forward), countedDrop)
}

// ctOriginal is for the direction of a connection's first packet.
var ctOriginal = word{text: "ct direction original", exprs: []expr.Any{
	&expr.Ct{Key: expr.CtKeyDIRECTION, Register: reg},
	&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: []byte{0}},
}}

// tproxy gives a packet to the socket that listens on a port of the pod, or to the one that a
// connection already has. The rule ends here if there is neither.
func (f family) tproxy(port uint16) word {
	return word{text: fmt.Sprintf("tproxy %s to :%d", f.keyword, port), l3: f.l3, l4: unix.IPPROTO_TCP, exprs: []expr.Any{
		&expr.Immediate{Register: reg, Data: net16(port)},
		&expr.TProxy{Family: f.l3, RegPort: reg},
	}}
}

// ctMark matches connections whose mark has the bit.
func ctMark(bit uint32) word {
	return word{text: fmt.Sprintf("ct mark & 0x%08x != 0x00000000", bit), exprs: []expr.Any{
		&expr.Ct{Key: expr.CtKeyMARK, Register: reg},
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 4, Mask: host32(bit), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: make([]byte, 4)},
	}}
}

// setCtMark sets a bit of the connection's mark, setMark one of the packet's.
func setCtMark(bit uint32) word {
	return word{text: fmt.Sprintf("ct mark set ct mark | 0x%08x", bit), exprs: []expr.Any{
		&expr.Ct{Key: expr.CtKeyMARK, Register: reg}, or(bit),
		&expr.Ct{Key: expr.CtKeyMARK, Register: reg, SourceRegister: true},
	}}
}

func setMark(bit uint32) word {
	return word{text: fmt.Sprintf("meta mark set meta mark | 0x%08x", bit), exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: reg}, or(bit),
		&expr.Meta{Key: expr.MetaKeyMARK, Register: reg, SourceRegister: true},
	}}
}

func or(bit uint32) expr.Any {
	return &expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 4, Mask: host32(^bit), Xor: host32(bit)}
}

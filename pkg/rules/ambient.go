package rules

import (
	"fmt"
	"net/netip"

	"github.com/google/nftables/expr"
)

// Marks in a pod of Istio's ambient mesh. Istio itself looks at the low 12 bits.
const (
	IstioMarkBits = 0xfff
	// ZtunnelMark is on everything that the node's proxy sends from inside the pod (SO_MARK).
	ZtunnelMark = 0x539
	// ToLoopbackMark delivers a packet to the pod itself whatever its destination, by the policy route
	// (table 100) that istio-cni makes in each pod for both families.
	ToLoopbackMark = 0x111
)

// probeSources are the addresses from which the node sends to the pod: istio-cni puts them into the
// kubelet's probes, so that these can be told from what has to come through the mesh.
var probeSources = []netip.Addr{
	netip.AddrFrom4([4]byte{169, 254, 7, 127}),
	netip.MustParseAddr("fd16:9254:7127:1337:ffff:ffff:ffff:ffff"),
}

// ambient is mode rules for a proxy that is not in the pod but on the node (ztunnel), and opens its
// sockets inside the pod's network namespace. It dials the guest from the client's own address, so
// that the guest's replies are for somewhere in the network, and have to be led to the proxy.
func ambient(b *builder) {
	pre := b.chain("prerouting", natPrerouting)
	fromGuest := b.fromGuest(way{to: []word{redirect(b.Mesh.OutboundPort)}})
	fromOutside := b.fromOutside()
	pre.add("what the guest opens", b.fromVirtual, jump(fromGuest))
	for i, f := range families {
		probe := f.saddr.is(address(probeSources[i]))
		pre.add("the kubelet's probe goes straight to the guest", b.fromNetwork, probe, b.guestTCP, b.toGuest(f))
		pre.add("the kubelet's probe of the pod itself stays there", b.fromNetwork, probe, tcp, f.freeze())
	}
	pre.add("what comes to the pod", b.fromNetwork, toPodItself, jump(fromOutside))

	out := b.chain("output", natOutput)
	for _, f := range b.served {
		// A service may lead the guest back to itself: the proxy then calls itself.
		out.add("the mesh's own port stays with the mesh", b.onLoopback, f.daddr.notIn(f.loopback), b.byMesh, tcpDport.in(b.own), f.freeze())
	}
	b.letInAsClient(out, ToLoopbackMark, b.byMesh, word{})
	b.othersToSelf(out)
}

// istioMark matches packets with a mark of Istio's, notIstioMark all others.
func istioMark(m uint32) word    { return compareIstioMark("==", expr.CmpOpEq, m) }
func notIstioMark(m uint32) word { return compareIstioMark("!=", expr.CmpOpNeq, m) }

func compareIstioMark(sign string, op expr.CmpOp, m uint32) word {
	return word{text: fmt.Sprintf("meta mark & 0x%08x %s 0x%08x", IstioMarkBits, sign, m), exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: reg},
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 4, Mask: host32(IstioMarkBits), Xor: host32(0)},
		&expr.Cmp{Op: op, Register: reg, Data: host32(m)},
	}}
}

// ctReply is for the direction against a connection's first packet.
var ctReply = word{text: "ct direction reply", exprs: []expr.Any{
	&expr.Ct{Key: expr.CtKeyDIRECTION, Register: reg},
	&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: []byte{1}}, // IP_CT_DIR_REPLY
}}

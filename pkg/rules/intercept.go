package rules

import (
	"fmt"

	"github.com/google/nftables/expr"
)

// Where the mesh takes inbound connections by TPROXY (Mesh.TProxyMark), its proxy is called as the pod
// and dials the application from the client's address, by marked sockets. In every mode it then
// reaches the guest by a translation, also where a relay of ours stands for the rest: a relay would lose
// the client's address, for which one chooses this interception.
//
// The mesh decides before any nat chain (mangle, -150), and about packets rather than connections. Our
// chains stand one step before and behind it. The guest's interface it leaves alone by itself, since the
// webhook has told it to.
func (b *builder) intercepted(out *chain) {
	mark := b.Mesh.TProxyMark
	if mark == 0 {
		return
	}
	fromMesh := metaMark.is(bits(mark))
	b.letInAsClient(out, mark, fromMesh, setMarkTo(0))
	// Each packet is routed again once it is translated. With its mark it would go back into the pod.
	b.chain("to_guest", mangleOutput).add("the mesh's policy route must not lead it into the pod",
		fromMesh, ctMark(letInMark), ctOriginal, setMarkTo(0))

	// What has the mark already is left alone by the mesh, which then notes it on the connection.
	past := newPortSet("past_ports", "not for the mesh's proxy", portTableOf(b.Inbound.ExcludePorts, b.ownPorts))
	b.chain("spare", manglePrerouting).add("the mesh must not take the port",
		b.fromNetwork, toPodItself, tcpDport.in(past), ctNew, setMarkTo(mark))
	spared := b.chain("spared", mangledPrerouting)
	spared.add("the mesh's note", b.fromNetwork, tcpDport.in(past), ctNew, fromMesh, setCtMarkTo(0))
	spared.add("the mesh did not take the port", b.fromNetwork, tcpDport.in(past), fromMesh, setMarkTo(0))
	// The mesh takes every known connection for one that its proxy has accepted.
	spared.add("an answer to the guest goes on to it", b.fromNetwork, ctReply, fromMesh, setMarkTo(0))
}

// letInAsClient leads connections that the mesh's proxy (byMesh) opens to the pod from a client's
// address to the guest, and the guest's replies, which are for somewhere in the network, back to the proxy:
// by replyMark, which a policy route of the mesh's delivers in the pod.
func (b *builder) letInAsClient(out *chain, replyMark uint32, byMesh, prepare word) {
	for _, f := range b.served {
		out.add("the mesh's proxy lets it in to the guest",
			b.onLoopback, f.daddr.notIn(f.loopback), byMesh, b.guestTCP, setCtMark(letInMark), prepare, b.toGuest(f))
	}
	b.chain("replies", manglePrerouting).add("the guest's reply is for the mesh's proxy, not for the client",
		b.fromVirtual, ctReply, ctMark(letInMark), setMarkTo(replyMark))
}

// letInMark is ours, on connections of the mesh's proxy to the guest. It is outside of Istio's bits: with
// Istio's own mark on the connection Istio would lead the proxy's own packets to lo as well.
const letInMark = 0x10000

// metaMark is the packet's mark.
var metaMark = field{text: "meta mark", load: &expr.Meta{Key: expr.MetaKeyMARK, Register: reg}}

func bits(m uint32) value { return value{text: fmt.Sprintf("0x%08x", m), data: host32(m)} }

// setMarkTo replaces the packet's mark, setCtMarkTo that of the connection.
func setMarkTo(m uint32) word {
	return word{text: "meta mark set " + bits(m).text, exprs: []expr.Any{
		&expr.Immediate{Register: reg, Data: host32(m)},
		&expr.Meta{Key: expr.MetaKeyMARK, Register: reg, SourceRegister: true},
	}}
}

func setCtMarkTo(m uint32) word {
	return word{text: "ct mark set " + bits(m).text, exprs: []expr.Any{
		&expr.Immediate{Register: reg, Data: host32(m)},
		&expr.Ct{Key: expr.CtKeyMARK, Register: reg, SourceRegister: true},
	}}
}

package rules

import "github.com/meshvirt/meshvirt/pkg/nft"

// Where the mesh takes inbound connections by TPROXY (Mesh.TProxyMark), its proxy is called as the pod
// and dials the application from the client's address, by marked sockets. In every mode it then
// reaches the guest by a translation, also where a relay of ours stands for the rest: a relay would lose
// the client's address, for which one chooses this interception.
//
// The mesh decides before any nat chain (mangle, -150), and about packets rather than connections. Our
// chains stand one step before and behind it. The guest's interface it leaves alone by itself, since the
// webhook has told it to.
func (b *builder) intercepted(out *nft.Chain) {
	mark := b.Mesh.TProxyMark
	if mark == 0 {
		return
	}
	fromMesh := nft.Mark.Is(nft.Bits(mark))
	b.letInAsClient(out, mark, fromMesh, nft.SetMark(0))
	// Each packet is routed again once it is translated. With its mark it would go back into the pod.
	b.chain("to_guest", mangleOutput).Add("the mesh's policy route must not lead it into the pod",
		fromMesh, nft.CtMark(letInMark), nft.CtOriginal, nft.SetMark(0))

	// What has the mark already is left alone by the mesh, which then notes it on the connection.
	past := nft.PortSet("past_ports", "not for the mesh's proxy", nft.PortsOf(b.Inbound.ExcludePorts, b.ownPorts))
	b.chain("spare", manglePrerouting).Add("the mesh must not take the port",
		b.fromNetwork, toPodItself, nft.TCPDport.In(past), nft.CtNew, nft.SetMark(mark))
	spared := b.chain("spared", mangledPrerouting)
	spared.Add("the mesh's note", b.fromNetwork, nft.TCPDport.In(past), nft.CtNew, fromMesh, nft.SetCtMark(0))
	spared.Add("the mesh did not take the port", b.fromNetwork, nft.TCPDport.In(past), fromMesh, nft.SetMark(0))
	// The mesh takes every known connection for one that its proxy has accepted.
	spared.Add("an answer to the guest goes on to it", b.fromNetwork, nft.CtReply, fromMesh, nft.SetMark(0))
}

// letInAsClient leads connections that the mesh's proxy (byMesh) opens to the pod from a client's
// address to the guest, and the guest's replies, which are for somewhere in the network, back to the proxy:
// by replyMark, which a policy route of the mesh's delivers in the pod.
func (b *builder) letInAsClient(out *nft.Chain, replyMark uint32, byMesh, prepare nft.Word) {
	for _, f := range b.served {
		out.Add("the mesh's proxy lets it in to the guest",
			b.onLoopback, f.Daddr.NotIn(loopback.Of(f)), byMesh, b.guestTCP, nft.OrCtMark(letInMark), prepare, b.toGuest(f))
	}
	b.chain("replies", manglePrerouting).Add("the guest's reply is for the mesh's proxy, not for the client",
		b.fromVirtual, nft.CtReply, nft.CtMark(letInMark), nft.SetMark(replyMark))
}

// letInMark is ours, on connections of the mesh's proxy to the guest. It is outside of Istio's bits: with
// Istio's own mark on the connection Istio would lead the proxy's own packets to lo as well.
const letInMark = 0x10000

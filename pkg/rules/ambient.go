package rules

import (
	"net/netip"

	"github.com/meshvirt/meshvirt/pkg/nft"
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
	fromGuest := b.fromGuest(way{to: []nft.Word{nft.Redirect(b.Mesh.OutboundPort)}})
	fromOutside := b.fromOutside()
	pre.Add("what the guest opens", b.fromVirtual, nft.Jump(fromGuest))
	for i, f := range families {
		probe := f.Saddr.Is(nft.Addr(probeSources[i]))
		pre.Add("the kubelet's probe goes straight to the guest", b.fromNetwork, probe, b.guestTCP, b.toGuest(f))
		pre.Add("the kubelet's probe of the pod itself stays there", b.fromNetwork, probe, nft.TCP, f.Freeze())
	}
	pre.Add("what comes to the pod", b.fromNetwork, toPodItself, nft.Jump(fromOutside))

	out := b.chain("output", natOutput)
	for _, f := range b.served {
		// A service may lead the guest back to itself: the proxy then calls itself.
		out.Add("the mesh's own port stays with the mesh", b.onLoopback, f.Daddr.NotIn(loopback.Of(f)), b.byMesh, nft.TCPDport.In(b.own), f.Freeze())
	}
	b.letInAsClient(out, ToLoopbackMark, b.byMesh, nft.Word{})
	b.othersToSelf(out)
}

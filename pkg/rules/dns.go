package rules

import (
	"net/netip"

	"github.com/meshvirt/meshvirt/pkg/plan"
)

// dnsPort is where DNS servers listen (RFC 1035).
const dnsPort = 53

// dnsZone is the connection tracking zone of the guest's queries over UDP. A mesh that captures DNS
// puts answers from the pod's servers, and those of its own DNS proxy, into zones (Istio and Kuma:
// 1 and 2). An answer in another zone than its query is never translated back: the guest would wait
// for ever. The first rule that sets a zone wins, and ours come first, so any number will do that
// nobody else uses, and no mesh's numbers need be known.
const dnsZone = 53

// dnsListener is where the mesh's DNS proxy listens. The kernel delivers a guest's packet there
// because KubeVirt sets route_localnet on the virtual interface. IPv6 has no such setting: the
// guest's queries over IPv6 cannot be captured by rules alone.
func dnsListener(d *plan.DNS) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), d.Port)
}

// capturesDNS reports whether our rules bring the guest's queries in f to the mesh's DNS proxy.
func (b *builder) capturesDNS(f family) bool {
	return b.Mesh.DNS != nil && b.Mode != plan.Native && f.l3 == ipv4.l3
}

// dnsServer matches the servers whose DNS the mesh captures, at the given end of a packet: those of
// the pod or, if the mesh takes everything, all.
func (b *builder) dnsServer(f family, end field) word {
	if b.Mesh.DNS == nil || b.Mesh.DNS.All {
		return f.word
	}
	return end.in(b.nameservers.of(f))
}

// eachCapturedQuery calls do with the words for a query over UDP and for one over TCP.
func (b *builder) eachCapturedQuery(do func(why string, query ...word)) {
	if !b.capturesDNS(ipv4) {
		return
	}
	server, why := b.dnsServer(ipv4, ipv4.daddr), "the guest's DNS goes to the mesh"
	do(why, server, udpDport.is(port(dnsPort)))
	do(why, server, tcpDport.is(port(dnsPort)))
}

// captureDNS translates the guest's queries to the mesh's DNS proxy.
func (b *builder) captureDNS(fromGuest *chain) {
	b.eachCapturedQuery(func(why string, query ...word) {
		fromGuest.add(why, append(query, dnatPort(dnsListener(b.Mesh.DNS)))...)
	})
}

// dnsZones keeps the guest's queries over UDP and their answers in one zone, in every mode.
func (b *builder) dnsZones() {
	if b.Mesh.DNS == nil && b.Mode != plan.Ambient {
		return // a mesh that does not capture DNS sets no zones; an ambient one may, whatever the plan knows of it
	}
	in, out := b.chain("dns_in", rawPrerouting), b.chain("dns_out", rawOutput)
	zone := setZone(dnsZone)
	for _, f := range families {
		in.add("zone of the guest's query", b.fromVirtual, b.dnsServer(f, f.daddr), udpDport.is(port(dnsPort)), zone)
		if b.capturesDNS(f) {
			out.add("zone of the mesh's answer to the guest", b.toVirtual, f.word, udpSport.is(port(b.Mesh.DNS.Port)), zone)
			continue
		}
		// An answer from outside may be for the guest or for the mesh's DNS proxy, which asks the
		// same servers. Nothing in the packet tells, so the proxy's queries are put there as well.
		in.add("zone of the answer to the guest", b.fromNetwork, b.dnsServer(f, f.saddr), udpSport.is(port(dnsPort)), zone)
		out.add("zone of the mesh's own query", b.toNetwork, b.dnsServer(f, f.daddr), udpDport.is(port(dnsPort)), b.byMesh, zone)
	}
}

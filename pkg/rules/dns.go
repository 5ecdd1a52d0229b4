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
// because KubeVirt sets route_localnet on the virtual interface. IPv6 has no such setting: rules alone
// cannot capture the guest's queries over IPv6. Our proxy can, by sending them again from inside the pod.
func dnsListener(d *plan.DNS) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), d.Port)
}

// relayed reports whether our proxy is there.
func (b *builder) relayed() bool { return b.Mode == plan.NATProxy || b.Mode == plan.TProxy }

// capturesDNS reports whether our rules bring the guest's queries in f to the mesh's DNS proxy.
func (b *builder) capturesDNS(f family) bool {
	if b.relayed() {
		return b.Proxy.DNSPort != 0 && len(b.pod.Nameservers) > 0
	}
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

// A queryWay is where a query of the guest goes, and why.
type queryWay struct {
	why   string
	query []word
	to    word
}

// queryWays are those of all queries that our rules capture.
func (b *builder) queryWays() (all []queryWay) {
	add := func(why string, to word, query ...word) { all = append(all, queryWay{why, query, to}) }
	if b.relayed() {
		const why = "the guest's DNS is asked again by our proxy"
		if !b.capturesDNS(ipv4) {
			return nil
		}
		for i, a := range b.pod.Nameservers {
			add(why, redirect(b.Proxy.DNSPort+uint16(i)), familyOf(a).daddr.is(address(a)), udpDport.is(port(dnsPort)))
		}
		if b.Mesh.DNS.All {
			add(why, redirect(b.Proxy.DNSPort), udpDport.is(port(dnsPort)))
		}
		return all
	}
	if b.capturesDNS(ipv4) {
		server, why, to := b.dnsServer(ipv4, ipv4.daddr), "the guest's DNS goes to the mesh", dnatPort(dnsListener(b.Mesh.DNS))
		add(why, to, server, udpDport.is(port(dnsPort)))
		add(why, to, server, tcpDport.is(port(dnsPort)))
	}
	return all
}

// captureDNS leads the guest's queries to the mesh's DNS proxy, whatever else is excluded from the mesh.
func (b *builder) captureDNS(fromGuest *chain, intoMesh func(what string, match ...word)) {
	for _, w := range b.queryWays() {
		fromGuest.add(w.why, append(w.query, w.to)...)
	}
	if !b.relayed() || b.Mesh.DNS == nil {
		return
	}
	for _, f := range b.served {
		intoMesh("the guest's DNS over TCP goes to the mesh", b.dnsServer(f, f.daddr), tcpDport.is(port(dnsPort)))
	}
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
		switch {
		case !b.capturesDNS(f):
			// An answer from outside may be for the guest or for the mesh's DNS proxy, which asks the
			// same servers. Nothing in the packet tells, so the proxy's queries are put there as well.
			in.add("zone of the answer to the guest", b.fromNetwork, b.dnsServer(f, f.saddr), udpSport.is(port(dnsPort)), zone)
			out.add("zone of the mesh's own query", b.toNetwork, b.dnsServer(f, f.daddr), udpDport.is(port(dnsPort)), b.byMesh, zone)
		case b.relayed():
			for i, a := range b.pod.Nameservers {
				if familyOf(a).l3 != f.l3 && !b.Mesh.DNS.All {
					continue
				}
				out.add("zone of our proxy's answer to the guest", b.toVirtual, f.word, udpSport.is(port(b.Proxy.DNSPort+uint16(i))), zone)
			}
		default:
			out.add("zone of the mesh's answer to the guest", b.toVirtual, f.word, udpSport.is(port(b.Mesh.DNS.Port)), zone)
		}
	}
}

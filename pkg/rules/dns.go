package rules

import (
	"net/netip"

	"github.com/meshvirt/meshvirt/pkg/nft"
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
func (b *builder) capturesDNS(f *nft.Family) bool {
	if b.relayed() {
		return b.Proxy.DNSPort != 0 && len(b.pod.Nameservers) > 0
	}
	return b.Mesh.DNS != nil && b.Mode != plan.Native && f == nft.IPv4
}

// dnsServer matches the servers whose DNS the mesh captures, at the given end of a packet: those of
// the pod or, if the mesh takes everything, all.
func (b *builder) dnsServer(f *nft.Family, end nft.Field) nft.Word {
	if b.Mesh.DNS == nil || b.Mesh.DNS.All {
		return f.Any
	}
	return end.In(b.nameservers.Of(f))
}

// A queryWay is where a query of the guest goes, and why.
type queryWay struct {
	why   string
	query []nft.Word
	to    nft.Word
}

// queryWays are those of all queries that our rules capture.
func (b *builder) queryWays() (all []queryWay) {
	add := func(why string, to nft.Word, query ...nft.Word) { all = append(all, queryWay{why, query, to}) }
	if b.relayed() {
		const why = "the guest's DNS is asked again by our proxy"
		if !b.capturesDNS(nft.IPv4) {
			return nil
		}
		for i, a := range b.pod.Nameservers {
			add(why, nft.Redirect(b.Proxy.DNSPort+uint16(i)), nft.FamilyOf(a).Daddr.Is(nft.Addr(a)), nft.UDPDport.Is(nft.Port(dnsPort)))
		}
		if b.Mesh.DNS.All {
			add(why, nft.Redirect(b.Proxy.DNSPort), nft.UDPDport.Is(nft.Port(dnsPort)))
		}
		return all
	}
	if b.capturesDNS(nft.IPv4) {
		server, why, to := b.dnsServer(nft.IPv4, nft.IPv4.Daddr), "the guest's DNS goes to the mesh", nft.DNATPort(dnsListener(b.Mesh.DNS))
		add(why, to, server, nft.UDPDport.Is(nft.Port(dnsPort)))
		add(why, to, server, nft.TCPDport.Is(nft.Port(dnsPort)))
	}
	return all
}

// captureDNS leads the guest's queries to the mesh's DNS proxy, whatever else is excluded from the mesh.
func (b *builder) captureDNS(fromGuest *nft.Chain, intoMesh func(what string, match ...nft.Word)) {
	for _, w := range b.queryWays() {
		fromGuest.Add(w.why, append(w.query, w.to)...)
	}
	if !b.relayed() || b.Mesh.DNS == nil {
		return
	}
	for _, f := range b.served {
		intoMesh("the guest's DNS over TCP goes to the mesh", b.dnsServer(f, f.Daddr), nft.TCPDport.Is(nft.Port(dnsPort)))
	}
}

// dnsZones keeps the guest's queries over UDP and their answers in one zone, in every mode.
func (b *builder) dnsZones() {
	if b.Mesh.DNS == nil && b.Mode != plan.Ambient {
		return // a mesh that does not capture DNS sets no zones; an ambient one may, whatever the plan knows of it
	}
	in, out := b.chain("dns_in", rawPrerouting), b.chain("dns_out", rawOutput)
	zone := nft.SetZone(dnsZone)
	for _, f := range families {
		in.Add("zone of the guest's query", b.fromVirtual, b.dnsServer(f, f.Daddr), nft.UDPDport.Is(nft.Port(dnsPort)), zone)
		switch {
		case !b.capturesDNS(f):
			// An answer from outside may be for the guest or for the mesh's DNS proxy, which asks the
			// same servers. Nothing in the packet tells, so the proxy's queries are put there as well.
			in.Add("zone of the answer to the guest", b.fromNetwork, b.dnsServer(f, f.Saddr), nft.UDPSport.Is(nft.Port(dnsPort)), zone)
			out.Add("zone of the mesh's own query", b.toNetwork, b.dnsServer(f, f.Daddr), nft.UDPDport.Is(nft.Port(dnsPort)), b.byMesh, zone)
		case b.relayed():
			for i, a := range b.pod.Nameservers {
				if nft.FamilyOf(a) != f && !b.Mesh.DNS.All {
					continue
				}
				out.Add("zone of our proxy's answer to the guest", b.toVirtual, f.Any, nft.UDPSport.Is(nft.Port(b.Proxy.DNSPort+uint16(i))), zone)
			}
		default:
			out.Add("zone of the mesh's answer to the guest", b.toVirtual, f.Any, nft.UDPSport.Is(nft.Port(b.Mesh.DNS.Port)), zone)
		}
	}
}

// Package rules says which nftables rules a plan needs: plan and pod in, one table (inet meshvirt) as a value out. It
// does no I/O, so that the rules of a pod can be shown and followed without one. The words that rules are made of are
// those of package nft; package keeper writes them. Every rule carries its reason as a comment.
//
// The table rests on two facts of the kernel. The nat chains of everybody (ours, the mesh's,
// KubeVirt's) are walked by priority until one sets up a translation, so chains one step before the
// usual priorities decide first, whenever they were made. And a translation of a connection to
// where it goes anyhow ("freeze") keeps the later chains from touching it.
package rules

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/meshvirt/meshvirt/pkg/nft"
	"github.com/meshvirt/meshvirt/pkg/plan"
)

// Table is the name of the one table that MeshVirt owns, of nftables family inet.
const Table = "meshvirt"

// modes are what Build knows; each has a file. The guard is part of every mode.
var modes = map[plan.Mode]func(*builder){
	plan.Native:   native,
	plan.Rules:    rules,
	plan.NATProxy: natProxy,
	plan.TProxy:   tProxy,
	plan.Ambient:  ambient,
}

// istioPorts are those that Istio reserves in every pod, used or not. Envoy's admin interface is
// among them (15000). They are not for the guest to reach.
var istioPorts = []uint16{15000, 15001, 15004, 15006, 15008, 15009, 15020, 15021, 15053, 15090}

// Build makes the table for p in a pod as observed. It fails if p.Validate does. Equal plans and pods give equal tables.
func Build(p plan.Plan, pod Pod) (nft.Ruleset, error) {
	if err := p.Validate(); err != nil {
		return nft.Ruleset{}, err
	}
	mode, ok := modes[p.Mode]
	if !ok {
		return nft.Ruleset{}, fmt.Errorf("no rules are known for mode %q", p.Mode)
	}
	b := newBuilder(p, pod)
	b.guard()
	b.dnsZones()
	b.probed()
	mode(b)
	return nft.New(Table, b.chains...), nil
}

// A builder holds what the modes share: the plan in the words of rules.
type builder struct {
	plan.Plan
	pod    Pod
	chains []*nft.Chain

	// fromVirtual matches packets that the guest sent, toVirtual packets to it.
	fromVirtual, toVirtual nft.Word
	// fromNetwork and toNetwork match packets that enter or leave the pod, onLoopback those that do neither.
	fromNetwork, toNetwork, onLoopback nft.Word

	served  []*nft.Family // the families in which the mesh takes connections
	meshIPv nft.Word      // matches those families: no word at all if it takes both

	ownPorts []uint16 // ports on which the mesh and our proxy serve the outside
	own      *nft.Set // the same
	reserved *nft.Set // own, and all other ports of the mesh and of our proxy

	byMesh, byOthers   nft.Word // match packets that the mesh's proxy sends, and those of others in the pod
	guestTCP, guestUDP nft.Word // match ports that are the guest's
	nameservers        nft.Pair
}

var families = []*nft.Family{nft.IPv4, nft.IPv6}

func newBuilder(p plan.Plan, pod Pod) *builder {
	b := &builder{
		Plan: p, pod: pod, served: families, onLoopback: nft.OIFName.Is(nft.Name("lo")),
		fromNetwork: nft.IIFName.Is(nft.Name(p.PodInterface)), toNetwork: nft.OIFName.Is(nft.Name(p.PodInterface)),
	}
	if !pod.ServesIPv6(p.Mesh) {
		b.served, b.meshIPv = families[:1], nft.IPv4.Any
	}

	if s := nft.NameSet("interfaces", "the guest is behind them", p.Interfaces); s.Len() > 1 {
		b.fromVirtual, b.toVirtual = nft.IIFName.In(s), nft.OIFName.In(s)
	} else {
		b.fromVirtual, b.toVirtual = nft.IIFName.Is(nft.Name(p.Interfaces[0])), nft.OIFName.Is(nft.Name(p.Interfaces[0]))
	}

	b.ownPorts = slices.Clone(p.Mesh.OwnPorts)
	taken := append(slices.Clone(istioPorts), p.Mesh.OutboundPort, p.Mesh.InboundPort)
	if p.Mesh.DNS != nil {
		taken = append(taken, p.Mesh.DNS.Port)
	}
	if x := p.Proxy; x != nil {
		b.ownPorts = append(b.ownPorts, x.StatusPort)
		taken = append(taken, x.OutboundPort, x.InboundPort)
	}
	if p.WatchPort != 0 {
		b.ownPorts = append(b.ownPorts, p.WatchPort)
	}
	b.own = nft.PortSet("own_ports", "served by the mesh itself, never by the guest", nft.PortsOf(b.ownPorts))
	b.reserved = nft.PortSet("reserved_ports", "of the mesh and of MeshVirt", nft.PortsOf(b.ownPorts, taken))

	b.byMesh, b.byOthers = nft.SKUID.Is(nft.ID(p.Mesh.UID)), nft.SKUID.Not(nft.ID(p.Mesh.UID))
	switch {
	case p.Mesh.TProxyMark != 0: // a transparent proxy is root
		b.byMesh, b.byOthers = nft.SKGID.Is(nft.ID(p.Mesh.GID)), nft.SKGID.Not(nft.ID(p.Mesh.GID))
	case p.Mode == plan.Ambient:
		b.byMesh, b.byOthers = nft.MarkIs(ZtunnelMark, IstioMarkBits), nft.MarkNot(ZtunnelMark, IstioMarkBits)
	}

	b.guestTCP, b.guestUDP = nft.TCPDport.NotIn(b.own), nft.UDP
	if b.own.Len() == 0 {
		b.guestTCP = nft.TCP
	}
	if !p.Guest.AllPorts() {
		// The user's own lists of ports say as well that a port is the guest's.
		tcp, udp := nft.PortsOf(p.Inbound.IncludePorts, p.Inbound.ExcludePorts), nft.PortsOf()
		for _, r := range p.Guest.TCP {
			tcp.Add(r.First, r.Last)
		}
		for _, r := range p.Guest.UDP {
			udp.Add(r.First, r.Last)
		}
		b.guestTCP = nft.TCPDport.In(nft.PortSet("guest_tcp", "ports that are the guest's", tcp.Without(nft.PortsOf(b.ownPorts))))
		b.guestUDP = nft.UDPDport.In(nft.PortSet("guest_udp", "ports that are the guest's", udp))
	}

	b.nameservers = nft.AddrPair("nameservers", "the pod's, which the guest has from KubeVirt's DHCP", pod.Nameservers)
	return b
}

// guest is the guest's address in f, invalid if it has none.
func (b *builder) guest(f *nft.Family) netip.Addr {
	if f == nft.IPv4 {
		return b.Guest.IPv4
	}
	return b.Guest.IPv6
}

// toGuest sends a connection to the guest's address in f.
func (b *builder) toGuest(f *nft.Family) nft.Word { return f.DNAT(b.guest(f)) }

// chain starts a chain; at is nil for one that others jump to.
func (b *builder) chain(name string, at *nft.Base) *nft.Chain {
	c := &nft.Chain{Name: name, Base: at}
	b.chains = append(b.chains, c)
	return c
}

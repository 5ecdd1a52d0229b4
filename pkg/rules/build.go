// Package rules turns a plan into nftables rules and puts them into the kernel.
//
// Build is pure: plan and pod in, one table (inet meshvirt) as a value out. The value shows itself
// as nft text, which is what people read and audit, and writes itself by netlink, since the image
// that it runs in holds no nft. Every rule carries its reason as a comment.
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

	"github.com/meshvirt/meshvirt/pkg/plan"
)

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

// Build makes the table for p in a pod as observed. It fails if p.Validate does.
func Build(p plan.Plan, pod Pod) (Ruleset, error) {
	if err := p.Validate(); err != nil {
		return Ruleset{}, err
	}
	mode, ok := modes[p.Mode]
	if !ok {
		return Ruleset{}, fmt.Errorf("no rules are known for mode %q", p.Mode)
	}
	b := newBuilder(p, pod)
	b.guard()
	b.dnsZones()
	b.probed()
	mode(b)
	return b.ruleset(), nil
}

// A builder holds what the modes share: the plan in the words of rules.
type builder struct {
	plan.Plan
	pod    Pod
	chains []*chain

	// fromVirtual matches packets that the guest sent, toVirtual packets to it.
	fromVirtual, toVirtual word
	// fromNetwork and toNetwork match packets that enter or leave the pod, onLoopback those that do neither.
	fromNetwork, toNetwork, onLoopback word

	served  []family // the families in which the mesh takes connections
	meshIPv word     // matches those families: no word at all if it takes both

	ownPorts []uint16 // ports on which the mesh and our proxy serve the outside
	own      *set     // the same
	reserved *set     // own, and all other ports of the mesh and of our proxy

	byMesh, byOthers   word // match packets that the mesh's proxy sends, and those of others in the pod
	guestTCP, guestUDP word // match ports that are the guest's
	nameservers        pair
}

var families = []family{ipv4, ipv6}

func newBuilder(p plan.Plan, pod Pod) *builder {
	b := &builder{
		Plan: p, pod: pod, served: families, onLoopback: oifname.is(ifname("lo")),
		fromNetwork: iifname.is(ifname(p.PodInterface)), toNetwork: oifname.is(ifname(p.PodInterface)),
	}
	if !pod.IPv6 && !p.Mesh.DualStack {
		b.served, b.meshIPv = families[:1], ipv4.word
	}

	if s := newNameSet("interfaces", "the guest is behind them", p.Interfaces); len(s.spans) > 1 {
		b.fromVirtual, b.toVirtual = iifname.in(s), oifname.in(s)
	} else {
		b.fromVirtual, b.toVirtual = iifname.is(ifname(p.Interfaces[0])), oifname.is(ifname(p.Interfaces[0]))
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
	b.own = newPortSet("own_ports", "served by the mesh itself, never by the guest", portTableOf(b.ownPorts))
	b.reserved = newPortSet("reserved_ports", "of the mesh and of MeshVirt", portTableOf(b.ownPorts, taken))

	b.byMesh, b.byOthers = skuid.is(uid(p.Mesh.UID)), skuid.not(uid(p.Mesh.UID))
	switch {
	case p.Mesh.TProxyMark != 0: // a transparent proxy is root
		b.byMesh, b.byOthers = skgid.is(uid(p.Mesh.GID)), skgid.not(uid(p.Mesh.GID))
	case p.Mode == plan.Ambient:
		b.byMesh, b.byOthers = istioMark(ZtunnelMark), notIstioMark(ZtunnelMark)
	}

	b.guestTCP, b.guestUDP = tcpDport.notIn(b.own), udp
	if b.own.empty() {
		b.guestTCP = tcp
	}
	if !p.Guest.AllPorts() {
		// The user's own lists of ports say as well that a port is the guest's.
		t := portTableOf(p.Inbound.IncludePorts, p.Inbound.ExcludePorts).add(p.Guest.TCP).without(portTableOf(b.ownPorts))
		b.guestTCP = tcpDport.in(newPortSet("guest_tcp", "ports that are the guest's", t))
		b.guestUDP = udpDport.in(newPortSet("guest_udp", "ports that are the guest's", portTableOf().add(p.Guest.UDP)))
	}

	b.nameservers = newAddrPair("nameservers", "the pod's, which the guest has from KubeVirt's DHCP", pod.Nameservers)
	return b
}

// guest is the guest's address in f, invalid if it has none.
func (b *builder) guest(f family) netip.Addr {
	if f.l3 == ipv4.l3 {
		return b.Guest.IPv4
	}
	return b.Guest.IPv6
}

// toGuest sends a connection to the guest's address in f.
func (b *builder) toGuest(f family) word { return f.dnat(b.guest(f)) }

// chain starts a chain; at is nil for one that others jump to.
func (b *builder) chain(name string, at *base) *chain {
	c := &chain{name: name, base: at}
	b.chains = append(b.chains, c)
	return c
}

// add appends a rule, or nothing if no packet could ever match it.
func (c *chain) add(why string, words ...word) {
	if slices.ContainsFunc(words, func(w word) bool { return w.never }) {
		return
	}
	words = slices.DeleteFunc(words, func(w word) bool { return w.text == "" })
	c.rules = append(c.rules, rule{words: words, why: why})
}

// ruleset collects what was built: base chains that have rules, and sets in order of first use.
func (b *builder) ruleset() Ruleset {
	var out Ruleset
	for _, c := range b.chains {
		if c.base != nil && len(c.rules) == 0 {
			continue
		}
		out.chains = append(out.chains, c)
		for _, r := range c.rules {
			for _, w := range r.words {
				if w.set != nil && !slices.Contains(out.sets, w.set) {
					out.sets = append(out.sets, w.set)
				}
			}
		}
	}
	return out
}

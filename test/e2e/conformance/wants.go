package main

import (
	"errors"
	"net/netip"
	"slices"
	"strings"

	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/test/e2e/netlab"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/agent"
)

// What becomes of a flow.
const (
	meshed   = "through the mesh" // once, by the proxy's listener for its direction
	known    = "through the mesh, client kept"
	twice    = "through the mesh, out and in"
	direct   = "direct"
	refused  = "refused"
	answered = "the mesh answers"    // the proxy or its agent is the server
	probed   = "by the mesh's agent" // which asks the guest itself
	captured = "the mesh's DNS answers"
	inPod    = "stays in the pod"
	same     = "as Istio alone" // whatever that is
	unknown  = "the lab cannot tell"
)

// A row of the table below: what is wanted of a flow under a condition, and why, if it is not meshed.
type row struct {
	flows string // names, separated by blanks; a * at the end stands for any rest
	modes []plan.Mode
	when  func(cell) bool // nil: always
	want  string
	why   string
}

// Modes that share their wants: those in which MeshVirt owns all of the guest's traffic.
var (
	owned   = []plan.Mode{plan.Rules, plan.NATProxy, plan.TProxy}
	relayed = []plan.Mode{plan.NATProxy, plan.TProxy}
	native  = []plan.Mode{plan.Native}
	ambient = []plan.Mode{plan.Ambient}
	process = []plan.Mode{plan.Process}
	every   = slices.Concat(owned, native, ambient, process)
	others  = slices.Concat(owned, ambient, process)
)

// wants is the promise of every mode. The first row that fits decides. A flow that fits none goes through the mesh.
var wants = []row{
	{"*", []plan.Mode{plan.Off}, nil, same, "the pod is as the mesh left it"},

	{"attack-*", every, nil, refused, "the guest reaches nothing of the pod's own, and nobody by a false address"},
	{"icmp", every, nil, direct, "no mesh takes ICMP"},
	{"udp-out", every, nil, direct, "no mesh takes UDP"},
	{"migration-port-*", every, nil, inPod, "virt-launcher serves it itself"},

	// Mode native is Istio's own way, with KubeVirt's rules as they come.
	{"egress-* dns-tcp", native, and(not(served), inetRules, reroutedCIDR), refused, "Istio's nftables rules take IPv6 too, to where its proxy does not listen"},
	{"egress-* dns-tcp", native, not(served), direct, "the mesh does not serve IPv6"},
	{"egress-* dns-tcp", native, passes, direct, "this old Istio reroutes virtual interfaces in IPv4 only"},
	{"egress-* dns-tcp", native, not(reroutedCIDR), direct, "the mesh was told of other CIDRs, and takes no list of ports for virtual interfaces"},
	{"egress-* dns-tcp", native, excludedOut, meshed, "Istio's exclusions are for the pod's own processes"},
	{"dns-udp", native, nil, direct, "Istio redirects UDP of the pod's own processes only"},
	{"hairpin", native, not(rerouted), refused, "as with KubeVirt alone: the guest is not at the pod's address for itself"},
	{"hairpin", native, not(kubevirtLetsIn), refused, "KubeVirt does not lead what the mesh lets in to the guest"},
	{"ingress-ssh", native, and(steppedBack, listed), direct, "KubeVirt forwards port 22 itself"},
	{"ingress-* probe", native, and(steppedBack, not(kubevirtLetsIn)), refused, "KubeVirt leads what the mesh lets in to the guest in IPv4 only"},
	{"ingress-* probe", native, and(steppedBack, not(listed)), refused, "the VM does not list the port"},
	{"ingress-* probe", native, and(steppedBack, not(includedByIstio)), refused, "Istio leaves the port alone, and KubeVirt leaves it to Istio"},
	{"ingress-* probe", native, and(forwards, listed), direct, "KubeVirt's rules come first"},
	{"ingress-* probe", native, and(forwards), refused, "the VM does not list the port"},
	{"probe-of-the-sidecar metrics-*", native, and(forwardsAll), refused, "KubeVirt forwards every port to the guest"},
	{"probe-rewritten", native, and(forwardsAll), refused, "KubeVirt forwards every port to the guest"},
	{"probe-rewritten", native, not(kubevirtLetsIn), refused, "KubeVirt does not lead the agent's probe to the guest"},
	{"udp-in*", native, and(steppedBack), refused, "KubeVirt leaves all but port 22 to Istio, which takes no UDP"},
	{"pod-to-guest", native, not(kubevirtLetsIn), refused, "KubeVirt has the guest at the pod's address in its Istio mode and IPv4 only"},
	{"pod-to-guest", native, nil, direct, "it does not leave the pod"},

	// What the mesh's own containers serve.
	{"probe-of-the-sidecar metrics-* probe-rewritten", every, not(served), refused, "the mesh does not serve IPv6"},
	{"probe-of-the-sidecar metrics-* tunnel-port", every, nil, answered, "the port is the mesh's own"},
	{"probe-rewritten", every, nil, probed, "the injector has rewritten the probe"},
	{"probe-by-istio-cni", every, nil, direct, "the kubelet's probes are not the mesh's business"},

	{"udp-in-unlisted", every, nil, refused, "the VM does not list the port"},
	{"udp-in", every, nil, direct, "no mesh takes UDP"},

	{"dns-*", process, and(capturesDNS, served), captured, "the mesh captures DNS"},
	{"dns-*", relayed, and(capturesDNS, served), captured, "the mesh captures DNS, and takes the relay's for the pod's own"},
	{"dns-*", []plan.Mode{plan.Rules, plan.Ambient}, and(capturesDNS, ipv4), captured, "the mesh captures DNS"},
	{"dns-udp", every, nil, direct, "no mesh takes UDP, and DNS is not captured (over IPv6 by a relay only)"},

	{"pod-egress", every, and(not(served), inetRules, podIncludedOut), refused, "Istio's nftables rules take IPv6 too, to where its proxy does not listen"},
	{"egress-* dns-tcp pod-egress", every, not(served), direct, "the mesh does not serve IPv6"},
	{"hairpin", every, not(served), refused, "as with KubeVirt alone: the guest is not at the pod's address for itself"},
	{"egress-* dns-tcp", every, and(excludedOut), direct, "its CIDR or port is excluded"},
	{"hairpin", every, not(includedOut), refused, "as with KubeVirt alone: the guest is not at the pod's address for itself"},
	{"egress-* dns-tcp", every, not(includedOut), direct, "its CIDR and port are not included"},
	{"pod-egress", every, not(podIncludedOut), direct, "the mesh was told so for the pod's processes"},
	{"pod-to-guest", every, nil, direct, "it does not leave the pod"},
	{"hairpin", slices.Concat(native, owned), not(kubevirtLetsIn), twice, "it leaves the guest, and comes in again"},

	{"ingress-* probe", others, and(excludedIn), direct, "the port is excluded"},
	{"ingress-* probe tunnel*", every, not(listed), refused, "the VM does not list the port"},
	{"ingress-* probe", every, not(served), direct, "the mesh does not serve IPv6"},
	{"ingress-* probe", every, not(includedIn), direct, "the port is not included"},
	{"ingress-* probe", owned, transparent, known, "the mesh intercepts by TPROXY, and its proxy dials from the client's address"},
	{"ingress-* probe tunnel*", ambient, nil, known, "ztunnel dials from the client's address"},
}

// wantOf is what is wanted of a cell, and why.
func wantOf(c cell) (want, why string) {
	if i := rowOf(c); i >= 0 {
		return wants[i].want, wants[i].why
	}
	return meshed, ""
}

// rowOf is the row that decides about a cell, negative if none does.
func rowOf(c cell) int {
	return slices.IndexFunc(wants, func(r row) bool {
		return slices.Contains(r.modes, c.mode) && slices.ContainsFunc(strings.Fields(r.flows), c.named) && (r.when == nil || r.when(c))
	})
}

// named reports whether a cell's flow has a name of the table's.
func (c cell) named(pattern string) bool {
	prefix, any := strings.CutSuffix(pattern, "*")
	return any && strings.HasPrefix(c.flow.name, prefix) || pattern == c.flow.name
}

func not(when func(cell) bool) func(cell) bool { return func(c cell) bool { return !when(c) } }

func and(all ...func(cell) bool) func(cell) bool {
	return func(c cell) bool {
		return !slices.ContainsFunc(all, func(when func(cell) bool) bool { return !when(c) })
	}
}

// Conditions. "The mesh" is as istio-init or istio-cni was told.

func ipv4(c cell) bool        { return c.flow.family == "ipv4" }
func served(c cell) bool      { return c.served(c.flow) }
func inetRules(c cell) bool   { return c.told.Native } // of both families at once
func transparent(c cell) bool { return c.told.TProxy }
func capturesDNS(c cell) bool { return c.told.DNS || c.ambient.DNS }

// listed: the port is the guest's.
func listed(c cell) bool { return c.lists("TCP", c.flow.To.Port()) }

// steppedBack and forwards are KubeVirt's modes, with and without the annotation of Istio's on the VMI.
func steppedBack(c cell) bool { return c.vmi.Istio }
func forwards(c cell) bool    { return !c.vmi.Istio }
func forwardsAll(c cell) bool { return !c.vmi.Istio && !c.listsPorts() }

// kubevirtLetsIn: KubeVirt's own rules lead a connection of the mesh's proxy to the pod's address on to the guest.
func kubevirtLetsIn(c cell) bool { return c.vmi.Istio && ipv4(c) }

// rerouted, reroutedCIDR: Istio's rules for virtual interfaces take it.
func reroutedCIDR(c cell) bool {
	return c.told.OutboundAll || contains(c.told.IncludeCIDRs, c.flow.To.Addr())
}
func rerouted(c cell) bool { return served(c) && reroutedCIDR(c) && !passes(c) }

// passes: they let the family be.
func passes(c cell) bool { return c.told.Virtual4 && !ipv4(c) }

func excludedOut(c cell) bool {
	to := c.flow.To
	return slices.Contains(c.own.out, to.Port()) || contains(c.own.cidrs, to.Addr()) || c.mesh == sidecarMesh && excluded(c.told, to)
}

func includedOut(c cell) bool { return c.mesh == ambientMesh || included(c.told, c.flow.To) }

// podIncludedOut is without what the user says of the VM.
func podIncludedOut(c cell) bool {
	return c.mesh == ambientMesh || included(c.told, c.flow.To) && !excluded(c.told, c.flow.To)
}

func excludedIn(c cell) bool {
	port := c.flow.To.Port()
	return slices.Contains(c.own.in, port) || c.mesh == sidecarMesh && c.told.InboundAll && slices.Contains(c.told.ExcludeInPorts, port)
}

func includedIn(c cell) bool {
	return c.mesh == ambientMesh || c.told.InboundAll || slices.Contains(c.told.IncludeInPorts, c.flow.To.Port())
}

// includedByIstio is without what the user says of the VM.
func includedByIstio(c cell) bool {
	port := c.flow.To.Port()
	return includedIn(c) && !(c.told.InboundAll && slices.Contains(c.told.ExcludeInPorts, port))
}

// gotOf says what became of a flow in the words of wants, or in more if these do not do.
func gotOf(f flow, r netlab.Result, process bool) string {
	guestSaw := r.GuestSaw
	if process && f.From != netlab.Pod {
		guestSaw = r.PodSaw
	}
	ends := func(via string) bool { return len(r.Via) == 1 && string(r.Via[0]) == via }
	switch {
	case errors.Is(r.Err, agent.ErrNoAnswer):
		return unknown
	case !r.OK:
		return refused
	case strings.HasPrefix(f.Network, "raw-"):
		return "gets through"
	case f.Network == "dns-udp" || f.Network == "dns-tcp":
		switch {
		case ends("dns") && r.Answer == netlab.MeshDNSAnswer.String():
			return captured
		case r.Answer != netlab.ClusterDNSAnswer.String():
			return "answer " + r.Answer
		}
	case r.PodSaw.IsValid() && !process:
		return inPod
	}
	switch {
	case len(r.Via) == 0 && r.PeerSaw.IsValid() && r.PeerSaw.Addr() != netlab.PodIP4 && r.PeerSaw.Addr() != netlab.PodIP6:
		return direct + ", from " + r.PeerSaw.Addr().String()
	case len(r.Via) == 0:
		return direct
	case ends("serving") && guestSaw.IsValid():
		return probed
	case ends("serving"):
		return answered
	case (f.From == netlab.Guest || f.From == netlab.Pod) && ends("outbound"):
		return meshed
	case (f.From == netlab.Peer || f.From == netlab.Node) && (ends("inbound") || ends("tunnel")):
		if client := clientOf(f); guestSaw.Addr() == client {
			return known
		}
		return meshed
	case len(r.Via) == 2 && r.Via[0] == "outbound" && r.Via[1] == "inbound":
		return twice
	}
	return r.Outcome()
}

// clientOf is the true address of a client outside.
func clientOf(f flow) (a netip.Addr) {
	for _, h := range families {
		if h.family == f.family {
			a = h.peer
			if f.From == netlab.Node {
				a = h.node
			}
		}
	}
	return a
}

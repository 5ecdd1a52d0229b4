package main

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/rules"
)

// processPath is the way in mode process, in which we have no rules.
const processPath = `egress    guest -> a process of the pod, which opens its sockets -> as every process of the pod, by the mesh's redirection
ingress   peer -> the mesh's redirection and proxy -> the process of the pod -> guest
`

// drawPath draws the way of a pod's packets, made from its plan: what docs/architecture.md draws for
// each mode, with this pod's interfaces, addresses, ports and exclusions. The rules are what holds;
// the drawing names the place in the kernel (hook and priority) where each of them acts.
func drawPath(p plan.Plan, pod rules.Pod) string {
	d := drawing{
		Plan: p,
		ipv6: pod.IPv6 || p.Mesh.DualStack,
		// One place for several interfaces: what happens at each is the same.
		bridge: strings.Join(p.Interfaces, ","),
	}
	d.nodes = max(len(d.bridge), len(p.PodInterface), len("lo"))
	if p.Mode == plan.Native {
		d.native()
	} else {
		d.egress()
		d.ingress()
	}
	d.dns()
	d.others()
	return d.String()
}

// A drawing is made flow by flow.
type drawing struct {
	plan.Plan
	strings.Builder
	ipv6   bool // whether the mesh serves IPv6
	bridge string
	nodes  int // width of the column of interfaces
}

// flow begins a flow; an empty title goes on with the one before.
func (d *drawing) flow(title, format string, args ...any) {
	if title != "" && d.Len() > 0 {
		d.WriteString("\n")
	}
	fmt.Fprintf(d, "%-9s %s\n", title, fmt.Sprintf(format, args...))
}

// at is a hop: what happens at an interface, in a hook with a priority.
func (d *drawing) at(node, hook, format string, args ...any) {
	d.flow("", "%-*s  %-18s %s", d.nodes, node, hook, fmt.Sprintf(format, args...))
}

// then is a hop that is no rule.
func (d *drawing) then(format string, args ...any) { d.flow("", format, args...) }

// The hooks and priorities of our chains and of those that act behind them.
const (
	prerouting     = "prerouting -101"
	output         = "output -101"
	postrouting    = "postrouting 99"
	meshPrerouting = "prerouting -100"
	meshOutput     = "output -100"
)

// proxy is the mesh's.
func (d *drawing) proxy() string {
	if d.Mesh.TProxyMark != 0 { // it is root
		return fmt.Sprintf("the mesh's proxy (gid %d)", d.Mesh.GID)
	}
	return fmt.Sprintf("the mesh's proxy (uid %d)", d.Mesh.UID)
}

// guest is where connections to the guest go.
func (d *drawing) guest() string {
	var all []netip.Addr
	if d.Guest.IPv4.IsValid() {
		all = append(all, d.Guest.IPv4)
	}
	if d.Guest.IPv6.IsValid() && (d.ipv6 || len(all) == 0) {
		all = append(all, d.Guest.IPv6)
	}
	return list(all, " or ")
}

// source is from where the mesh's proxy dials the guest.
func (d *drawing) source() string {
	if d.ipv6 {
		return "127.0.0.6 or ::6"
	}
	return "127.0.0.6"
}

func (d *drawing) egress() {
	out := d.Outbound
	switch {
	case out.All:
		d.flow("egress", "guest %s -> peer, TCP to any address and port", d.guest())
	case len(out.IncludeCIDRs)+len(out.IncludePorts) > 0:
		d.flow("egress", "guest %s -> peer, %s", d.guest(), choice("TCP to", out.IncludeCIDRs, out.IncludePorts))
	default:
		d.flow("egress", "no TCP of the guest goes into the mesh: nothing is included")
	}
	if out.All || len(out.IncludeCIDRs)+len(out.IncludePorts) > 0 {
		switch {
		case d.Mode == plan.TProxy:
			d.at(d.bridge, prerouting, "mark and freeze: the destination stays")
			d.at(d.bridge, "prerouting", "tproxy to :%d, first of all chains or, without br_netfilter, at -99", d.Proxy.OutboundPort)
			d.then("meshvirt-proxy (uid %d) is called as the peer, dials it from the pod", d.Proxy.UID)
			d.at("", meshOutput, "the mesh's redirect to :%d", d.Mesh.OutboundPort)
		case d.Proxy != nil:
			d.at(d.bridge, prerouting, "redirect to :%d", d.Proxy.OutboundPort)
			d.then("meshvirt-proxy (uid %d) reads the original destination, dials it from the pod", d.Proxy.UID)
			d.at("", meshOutput, "the mesh's redirect to :%d", d.Mesh.OutboundPort)
		default:
			d.at(d.bridge, prerouting, "redirect to :%d", d.Mesh.OutboundPort)
		}
		d.then("%s dials the peer from the pod's address -> %s -> peer", d.proxy(), d.PodInterface)
	}
	straight := func(title, to string) {
		d.flow(title, "guest %s -> peer, %s", d.guest(), to)
		d.at(d.bridge, prerouting, "freeze: no later chain may redirect it")
		d.then("KubeVirt's masquerade -> %s -> peer, past the mesh", d.PodInterface)
	}
	if len(out.ExcludeCIDRs)+len(out.ExcludePorts) > 0 {
		straight("excluded", choice("TCP to", out.ExcludeCIDRs, out.ExcludePorts))
	}
	if !out.All {
		straight("else", "TCP to anything else")
	}
}

func (d *drawing) ingress() {
	in := d.Inbound
	switch {
	case in.All:
		d.flow("ingress", "peer -> pod, any TCP port that is not named below")
	case len(in.IncludePorts) > 0:
		d.flow("ingress", "peer -> pod, TCP port %s", list(in.IncludePorts, ", "))
	default:
		d.flow("ingress", "no TCP port of the pod is served by the mesh: none is included")
	}
	switch {
	case !in.All && len(in.IncludePorts) == 0:
	case d.Mesh.TProxyMark != 0:
		d.asClient()
	default:
		d.at(d.PodInterface, prerouting, "redirect to :%d", d.Mesh.InboundPort)
		if d.Mesh.DialsLoopback {
			d.then("%s dials 127.0.0.1, or the pod's own address from %s", d.proxy(), d.source())
		} else {
			d.then("%s dials the pod's own address from %s", d.proxy(), d.source())
		}
		if d.Proxy != nil {
			d.at("lo", output, "redirect to :%d, if the guest has the port: %s", d.Proxy.InboundPort, d.guestTCP())
			d.then("meshvirt-proxy (uid %d) reads the original destination, dials the port at %s", d.Proxy.UID, d.guest())
			d.at(d.bridge, output, "freeze: not the mesh's outbound -> guest, which sees the bridge's address")
		} else {
			d.at("lo", output, "dnat to %s, if the guest has the port: %s", d.guest(), d.guestTCP())
			d.at(d.bridge, postrouting, "masquerade -> guest, which sees the bridge's address")
		}
	}
	if d.Mesh.TProxyMark != 0 {
		d.flow("past", "peer -> pod, the TCP ports below; and answers to what the guest opened past the mesh")
		d.at(d.PodInterface, "prerouting -151", "mark %#x keeps the mesh's TPROXY away", d.Mesh.TProxyMark)
		d.at(d.PodInterface, "prerouting -149", "the mark goes again")
	}
	if ports := slices.DeleteFunc(slices.Clone(in.ExcludePorts), func(p uint16) bool { return slices.Contains(d.ownPorts(), p) }); len(ports) > 0 {
		d.flow("excluded", "peer -> pod, TCP port %s", list(ports, ", "))
		d.at(d.PodInterface, prerouting, "dnat to %s -> guest, past the mesh; it sees the peer's address", d.guest())
	}
	if !in.All {
		d.flow("else", "peer -> pod, any other TCP port that the guest has: %s", d.guestTCP())
		d.at(d.PodInterface, prerouting, "dnat to %s -> guest, past the mesh; it sees the peer's address", d.guest())
	}
	if own := d.ownPorts(); len(own) > 0 {
		d.flow("own", "peer -> pod, TCP port %s", list(own, ", "))
		d.at(d.PodInterface, prerouting, "freeze: served in the pod, never by the guest")
	}
	if ports := d.guestUDP(); ports == "" {
		d.flow("UDP", "peer -> pod: the VMI lists no UDP port for the guest")
	} else {
		d.flow("UDP", "peer -> pod, UDP port %s", ports)
		d.at(d.PodInterface, prerouting, "dnat to %s -> guest; no mesh takes UDP", d.guest())
	}
	d.then("guest -> peer: KubeVirt's masquerade -> %s -> peer", d.PodInterface)
}

// asClient is the way in through a mesh that intercepts by TPROXY.
func (d *drawing) asClient() {
	d.at(d.PodInterface, "prerouting -150", "the mesh's TPROXY to :%d", d.Mesh.InboundPort)
	d.at(d.PodInterface, prerouting, "freeze: no later chain may forward it past the mesh")
	d.then("%s is called as the pod, dials the pod's own address from the peer's, with mark %#x", d.proxy(), d.Mesh.TProxyMark)
	d.at("lo", output, "dnat to %s, if the guest has the port: %s; the mark goes -> guest, which sees the peer's address", d.guest(), d.guestTCP())
	d.then("the guest replies to the peer")
	d.at(d.bridge, "prerouting -151", "mark %#x: by the mesh's policy route to its proxy, which answers the peer", d.Mesh.TProxyMark)
}

func (d *drawing) native() {
	d.flow("egress", "guest %s -> peer, TCP", d.guest())
	d.at(d.bridge, meshPrerouting, "Istio's redirect of the interface (-k) to :%d; outbound exclusions do not hold for it", d.Mesh.OutboundPort)
	d.then("%s dials the peer from the pod's address -> %s -> peer", d.proxy(), d.PodInterface)
	d.flow("ingress", "peer -> pod, TCP as Istio's own rules and KubeVirt's say")
	d.at(d.PodInterface, meshPrerouting, "redirect to :%d (KubeVirt sends port 22 straight to the guest)", d.Mesh.InboundPort)
	d.then("%s dials the pod's own address from 127.0.0.6", d.proxy())
	d.at("lo", meshOutput, "KubeVirt's dnat to %s -> guest, which sees the bridge's address; IPv4 only", d.guest())
	d.flow("UDP", "peer -> pod: not forwarded to the guest, KubeVirt leaves it to the mesh and no mesh takes it")
	d.then("guest -> peer: KubeVirt's masquerade -> %s -> peer", d.PodInterface)
}

func (d *drawing) dns() {
	switch {
	case d.Mesh.DNS == nil:
		d.flow("DNS", "guest -> server: as other UDP and TCP, the mesh does not capture the pod's queries")
		return
	case d.Mode == plan.Native:
		d.flow("DNS", "guest -> server: as other UDP and TCP, no rule brings it to the mesh's DNS proxy in this mode")
		d.at(d.bridge, "prerouting -301", "one zone for query and answer, in spite of the mesh's zones")
		return
	}
	to := "the pod's nameservers"
	if d.Mesh.DNS.All {
		to = "any server"
	}
	if d.Proxy == nil {
		d.flow("DNS", "guest -> %s, UDP and TCP port 53, over IPv4", to)
		d.at(d.bridge, prerouting, "dnat to 127.0.0.1:%d, the mesh's DNS proxy, which answers", d.Mesh.DNS.Port)
		return
	}
	if d.Proxy.DNSPort == 0 {
		d.flow("DNS", "guest -> %s, TCP port 53: as egress, whatever is excluded; UDP is not captured", to)
		return
	}
	d.flow("DNS", "guest -> %s, UDP port 53", to)
	d.at(d.bridge, prerouting, "redirect to :%d for the first nameserver, the next ports for the others", d.Proxy.DNSPort)
	d.then("meshvirt-proxy (uid %d) asks the nameserver from the pod", d.Proxy.UID)
	d.at("", meshOutput, "the mesh's redirect to :%d, the mesh's DNS proxy, which answers; IPv6 if the mesh serves it", d.Mesh.DNS.Port)
	d.then("TCP port 53: as egress, whatever is excluded")
}

// others are the flows that are alike in every mode.
func (d *drawing) others() {
	if !d.ipv6 && d.Mode != plan.Native {
		d.flow("IPv6", "the mesh does not serve it here: TCP over IPv6 that no line above takes is KubeVirt's, past the mesh")
	}
	d.flow("guard", "guest -> 127.0.0.0/8, ::1, ::6, or from an address that is not its own")
	d.at(d.bridge, "prerouting -301", "drop")
	d.then("guest -> the gateway (but DHCP, ICMP), the mesh's own ports in the pod, anything but TCP and ICMP of the pod")
	d.at(d.bridge, "prerouting -151", "drop what is new")
}

// ownPorts are those that the mesh and our relay serve in the pod.
func (d *drawing) ownPorts() []uint16 {
	own := slices.Clone(d.Mesh.OwnPorts)
	if d.Proxy != nil {
		own = append(own, d.Proxy.StatusPort)
	}
	if d.WatchPort != 0 {
		own = append(own, d.WatchPort)
	}
	return own
}

// guestTCP are the ports on which the guest is reached. The user's lists of ports count as well as
// those of its interface.
func (d *drawing) guestTCP() string {
	if d.Guest.AllPorts() {
		return "any but the mesh's own"
	}
	all := slices.Clone(d.Guest.TCP)
	for _, p := range slices.Concat(d.Inbound.IncludePorts, d.Inbound.ExcludePorts) {
		if !slices.ContainsFunc(all, func(r plan.PortRange) bool { return r.Contains(p) }) {
			all = append(all, plan.Port(p))
		}
	}
	all = slices.DeleteFunc(all, func(r plan.PortRange) bool { return r.First == r.Last && slices.Contains(d.ownPorts(), r.First) })
	if len(all) == 0 {
		return "none"
	}
	return list(all, ", ")
}

// guestUDP is empty if the guest has no such port.
func (d *drawing) guestUDP() string {
	if d.Guest.AllPorts() {
		return "any"
	}
	return list(d.Guest.UDP, ", ")
}

// choice is addresses or ports.
func choice(what string, cidrs []netip.Prefix, ports []uint16) string {
	var all []string
	if len(cidrs) > 0 {
		all = append(all, what+" "+list(cidrs, ", "))
	}
	if len(ports) > 0 {
		all = append(all, "TCP port "+list(ports, ", "))
	}
	return strings.Join(all, "; ")
}

// list keeps long lists short: a plan may have thousands of CIDRs, and the rules have them all.
func list[T any](all []T, separator string) string {
	const most = 10
	var text []string
	for i, v := range all {
		if i == most && len(all) > most+1 {
			text = append(text, fmt.Sprintf("and %d more", len(all)-most))
			break
		}
		text = append(text, fmt.Sprint(v))
	}
	return strings.Join(text, separator)
}

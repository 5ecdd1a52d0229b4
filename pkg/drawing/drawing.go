// Package drawing shows people the ways of a pod's packets: it chooses the flows that a plan is about, has package walk
// follow a packet of each, and draws what became of it, a line for each thing that happens.
package drawing

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/meshvirt/meshvirt/pkg/interpreter"
	"github.com/meshvirt/meshvirt/pkg/nft"
	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/walk"
)

// lines draws a way. names are those of hosts, for their addresses.
func lines(w walk.Way, pod walk.Pod, names map[netip.Addr]string) (out []string) {
	d := drawer{names: names, links: len("lo")}
	for _, n := range append(slices.Clone(pod.Plan.Interfaces), pod.Plan.PodInterface) {
		d.links = max(d.links, len(n))
	}
	for i, leg := range w.Legs {
		if leg.By != "" {
			out = append(out, d.dials(leg))
		}
		out = append(out, d.steps(leg.First)...)
		switch {
		case leg.Out == pod.Plan.PodInterface:
			out = append(out, fmt.Sprintf("-> %s -> %s, which sees %s", leg.Out, d.host(leg.Conn.Real), d.host(leg.Conn.Presented)))
		case leg.Out != "":
			out = append(out, fmt.Sprintf("-> %s -> guest, which sees %s", leg.Out, d.host(leg.Conn.Presented)))
		case i < len(w.Legs)-1:
		case w.End.Kind == walk.Served:
			out = append(out, w.End.Who+" answers")
		case w.End.Kind == walk.Refused:
			out = append(out, "nobody listens there: refused")
		}
	}
	for _, leg := range slices.Backward(w.Legs) {
		if reply := d.steps(leg.Reply); len(reply) > 0 {
			to := leg.By
			if to == "" {
				to = d.host(leg.Conn.Src)
			}
			out = append(append(out, "the reply to "+to+":"), reply...)
		}
	}
	return out
}

type drawer struct {
	names map[netip.Addr]string
	links int // width of the column of interfaces
}

func (d drawer) host(a netip.AddrPort) string {
	if n := d.names[a.Addr()]; n != "" {
		return n
	}
	return a.Addr().String()
}

func (d drawer) port(a netip.AddrPort) string {
	switch {
	case a.Port() == 0:
		return d.host(a)
	case d.names[a.Addr()] != "" || a.Addr().Is4():
		return fmt.Sprintf("%s:%d", d.host(a), a.Port())
	}
	return a.String()
}

func (d drawer) dials(leg *walk.Leg) string {
	s := fmt.Sprintf("%s (uid %d) dials %s", leg.By, leg.Owner.UID, d.port(leg.Conn.Dst))
	if leg.Owner.UID != leg.Owner.GID {
		s = fmt.Sprintf("%s (uid %d, gid %d) dials %s", leg.By, leg.Owner.UID, leg.Owner.GID, d.port(leg.Conn.Dst))
	}
	if from := d.host(leg.Conn.Src); from != "pod" {
		s += " from " + from
	}
	if leg.Mark != 0 {
		s += fmt.Sprintf(" with mark %#x", leg.Mark)
	}
	return s
}

// effective are the rules of a step that did more than to lead to others. A translation ends its chain: one that
// did not was for the other family.
func effective(s walk.Step) (out []interpreter.Match) {
	for i, m := range s.Rules {
		if !strings.HasPrefix(m.Action, "jump ") && m.Action != "accept" && (i == len(s.Rules)-1 || !translates(m)) {
			out = append(out, m)
		}
	}
	return out
}

func translates(m interpreter.Match) bool { return strings.Contains(m.Action, "dnat ") }

func (d drawer) steps(steps []walk.Step) (out []string) {
	for _, s := range steps {
		for _, m := range effective(s) {
			action := strings.ReplaceAll(m.Action, "counter packets 0 bytes 0 ", "")
			link := s.Before.In
			if s.Hook == nft.Output || s.Hook == nft.Postrouting {
				link = s.Before.Out
			}
			priority := fmt.Sprint(s.Priority)
			switch {
			case s.Priority == math.MinInt32:
				priority = "INT_MIN"
			case s.Who == walk.Linux:
				priority = ""
			}
			line := fmt.Sprintf("%-*s  %-18s  %-8s  %s", d.links, link, string(s.Hook)+" "+priority, s.Who, action)
			switch {
			case s.Before.Dst != s.After.Dst:
				line += fmt.Sprintf(" [%s -> %s]", d.port(s.Before.Dst), d.port(s.After.Dst))
			case s.Before.Src.Addr() != s.After.Src.Addr():
				line += fmt.Sprintf(" [source %s -> %s]", d.host(s.Before.Src), d.host(s.After.Src))
			case translates(m):
				line += " [frozen]"
			}
			if m.Why != "" {
				line += ": " + m.Why
			}
			out = append(out, line)
		}
	}
	return out
}

// shape is a way without addresses: what happened, where, and why.
func shape(w walk.Way) string {
	var b strings.Builder
	for _, leg := range w.Legs {
		b.WriteString(leg.By + leg.Out + "\n")
		for _, s := range slices.Concat(leg.First, leg.Reply) {
			for _, m := range effective(s) {
				action, _, _ := strings.Cut(strings.ReplaceAll(m.Action, "ip6", "ip"), "nat ") // where to shows in the rest
				fmt.Fprintln(&b, s.Who, s.Hook, s.Priority, m.Chain, m.Why, action)
			}
		}
	}
	return b.String() + string(w.End.Kind)
}

// Of draws the ways of a pod's packets. Its flows are chosen by the plan; what becomes of each is the walk's word. The
// pod's addresses may be left out, then there are examples; those of the guest's bridge are made from the plan. In a family
// that the pod lacks nothing is drawn: KubeVirt gives the guest none there. It fails as walk.Follow does.
func Of(pod walk.Pod) (string, error) {
	d := &drawing{Pod: pod, Plan: pod.Plan}
	d.addresses()
	d.egress()
	d.ingress()
	d.udp()
	d.dns()
	d.guard()
	return d.String(), d.err
}

// processPath is the way in mode process, in which we have no rules.
const processPath = `egress    guest -> a process of the pod, which opens its sockets -> as every process of the pod, by the mesh's redirection
ingress   peer -> the mesh's redirection and proxy -> the process of the pod -> guest
`

// OfProcess is Of for mode process, which has no plan.
func OfProcess() string { return processPath }

// A drawing is made flow by flow.
type drawing struct {
	walk.Pod
	plan.Plan
	strings.Builder
	names map[netip.Addr]string
	err   error
}

// Example addresses. Nothing depends on them but what exclusions say of the peer's.
var (
	examplePods  = []netip.Prefix{netip.MustParsePrefix("10.244.1.17/32"), netip.MustParsePrefix("fd00:10:244:1::11/128")}
	examplePeers = []netip.Addr{
		netip.MustParseAddr("10.244.2.20"), netip.MustParseAddr("203.0.113.20"), netip.MustParseAddr("172.20.2.20"),
		netip.MustParseAddr("fd00:10:244:2::20"), netip.MustParseAddr("2001:db8:2::20"), netip.MustParseAddr("fdff:2::20"),
	}
	kubelet = netip.AddrFrom4([4]byte{169, 254, 7, 127}) // as istio-cni has it (pkg/rules/ambient.go)
)

// addresses fills in those that Pod leaves out, and names all.
func (d *drawing) addresses() {
	if len(d.IPs) == 0 {
		d.IPs = examplePods
	}
	d.names = map[netip.Addr]string{kubelet: "kubelet"}
	for _, guest := range []netip.Addr{d.Guest.IPv4, d.Guest.IPv6} {
		if !guest.IsValid() {
			continue
		}
		d.names[guest] = "guest"
		// KubeVirt's gateway is the first address of the guest's network, the guest's the second.
		d.Gateways = append(d.Gateways, netip.PrefixFrom(guest.Prev(), map[bool]int{true: 24, false: 120}[guest.Is4()]))
	}
	for _, p := range d.IPs {
		d.names[p.Addr()] = "pod"
	}
	for _, p := range d.Gateways {
		d.names[p.Addr()] = "gateway"
	}
	for _, a := range d.Observed.Nameservers {
		d.names[a] = "nameserver"
	}
}

// text is a line that no packet stands behind; an empty title goes on with the flow before.
func (d *drawing) text(title, format string, args ...any) {
	if title != "" && d.Len() > 0 {
		d.WriteString("\n")
	}
	d.WriteString(strings.TrimRight(fmt.Sprintf("%-9s %s", title, fmt.Sprintf(format, args...)), " ") + "\n")
}

// A sample stands for a flow in one family. It is not valid if the flow has nothing there.
type sample struct {
	packet    interpreter.Packet
	tunnelled uint16
}

// flow walks a sample in each family that guest and pod have, and draws both if they differ.
func (d *drawing) flow(title, what string, of func(v4 bool) sample) {
	type drawn struct {
		family string
		way    walk.Way
		sample sample
	}
	var all []drawn
	for _, v4 := range []bool{true, false} {
		if guest := map[bool]netip.Addr{true: d.Guest.IPv4, false: d.Guest.IPv6}[v4]; !guest.IsValid() || !d.pod(v4).IsValid() {
			continue
		}
		s := of(v4)
		if !s.packet.Dst.IsValid() {
			continue
		}
		way, err := walk.Follow(d.Pod, s.packet, s.tunnelled)
		if err != nil && d.err == nil {
			d.err = fmt.Errorf("%s: %s -> %s: %w", title, s.packet.Src, s.packet.Dst, err)
		}
		all = append(all, drawn{map[bool]string{true: "IPv4", false: "IPv6"}[v4], way, s})
	}
	if len(all) == 2 && shape(all[0].way) == shape(all[1].way) {
		all, all[0].family = all[:1], "IPv4, and IPv6 alike"
	}
	d.text(title, "%s", what)
	for _, x := range all {
		dr := drawer{names: d.names}
		p := x.sample.packet
		d.text("", "%s: %s -> %s, %s", x.family, dr.host(p.Src), dr.port(p.Dst), protocol(p.Proto))
		for _, l := range lines(x.way, d.Pod, d.names) {
			d.text("", "  %s", l)
		}
	}
}

// protocol names what people call it.
func protocol(p uint8) string {
	switch p {
	case unix.IPPROTO_TCP:
		return "TCP"
	case unix.IPPROTO_UDP:
		return "UDP"
	}
	return fmt.Sprintf("protocol %d", p)
}

// Package walk follows a packet through a pod: which rule of ours in which hook took it, what was rewritten, who
// sent it on, and where it came out.
//
// The rules are those that package rules builds, run by package interpreter as the kernel runs them. Around it is a model of
// the few hops of others that a whole way needs: the order in which hooks call chains, Istio's and KubeVirt's rules,
// what the mesh's proxy and our relay dial. It is pure. That the kernel goes the same way is tested in test/e2e/netlab,
// rule by rule. Package drawing shows ways to people.
package walk

import (
	"fmt"
	"net/netip"

	"github.com/google/nftables/expr"

	"github.com/meshvirt/meshvirt/pkg/interpreter"
	"github.com/meshvirt/meshvirt/pkg/nft"
	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/rules"
)

// A Pod is all that a way depends on.
type Pod struct {
	Plan     plan.Plan
	Observed rules.Pod
	// IPs are the pod's addresses, one of a family, Gateways those of the guest's bridge.
	IPs, Gateways []netip.Prefix
	// BridgeNF says that packets of a bridge pass the IP hooks already there (bridge-nf-call-iptables), as on nodes
	// of Kubernetes.
	BridgeNF bool
}

// EphemeralPort stands for every port that a client's kernel chooses.
const EphemeralPort = 40000

// A Way is what became of a packet: one connection after the other.
type Way struct {
	Legs []*Leg
	// End is where the last one came to.
	End End
}

// A Leg is one connection in the pod: its first packet and, if that came to somebody, the first reply.
type Leg struct {
	// By is the process that opened it, empty for the client.
	By    string
	Owner *interpreter.Owner
	Mark  uint32 // that By's socket bears
	Conn  *interpreter.Conn
	In    string // the interface that it came in by, empty if the pod opened it
	Out   string // the interface that it left by, empty if it ended in the pod
	First []Step
	Reply []Step
}

// An End is where a way ends.
type End struct {
	Kind EndKind
	// Who serves it, of those in the pod.
	Who string
	// Saw is the client that the other end sees.
	Saw netip.AddrPort
}

// An EndKind is a kind of end.
type EndKind string

// The kinds of ends.
const (
	AtGuest EndKind = "guest"
	AtPeer  EndKind = "peer"
	Served  EndKind = "served"  // by a process of the pod
	Refused EndKind = "refused" // delivered in the pod, where nobody is known to listen
	Dropped EndKind = "dropped"
)

// world is a pod with everybody's rules, and the leg that is walked.
type world struct {
	Pod
	table     nft.Ruleset
	net       interpreter.Network
	others    []other
	leg       *Leg
	tunnelled uint16
}

// maxLegs bounds a way in case a proxy calls itself.
const maxLegs = 8

// Follow walks a packet, and those that are sent on for it. tunnelled is the port that the mesh's proxy is asked
// for in a tunnel, if the packet opens one, else 0. It fails if the plan is not valid, or if the rules hold
// something that the walk does not know.
func Follow(pod Pod, p interpreter.Packet, tunnelled uint16) (Way, error) {
	table, err := rules.Build(pod.Plan, pod.Observed)
	if err != nil {
		return Way{}, err
	}
	w := newWorld(pod, table, tunnelled)
	var way Way
	for by, on := "", &p; on != nil; {
		if len(way.Legs) == maxLegs {
			return way, fmt.Errorf("more than %d connections for one", maxLegs)
		}
		w.leg = &Leg{By: by, Owner: on.Owner, Mark: on.Mark, In: on.In}
		way.Legs = append(way.Legs, w.leg)
		alive, arrived, err := w.walk(*on)
		if err != nil {
			return way, err
		}
		by, on = "", nil
		way.End = End{Saw: arrived.Src}
		switch {
		case !alive:
			way.End.Kind = Dropped
			return way, nil
		case w.leg.Out == pod.Plan.PodInterface:
			way.End.Kind = AtPeer
		case w.leg.Out != "":
			way.End.Kind = AtGuest
		default:
			port := arrived.Dst.Port()
			if arrived.Socket != 0 {
				port = arrived.Socket
			}
			if by, on = w.process(port, arrived); by == "" {
				way.End.Kind = Refused
				return way, nil
			}
			way.End.Kind, way.End.Who = Served, by
		}
		if err := w.reply(arrived); err != nil {
			return way, err
		}
	}
	return way, nil
}

func newWorld(pod Pod, table nft.Ruleset, tunnelled uint16) *world {
	w := &world{Pod: pod, table: table, tunnelled: tunnelled}
	w.net.Loopback = []netip.Addr{source6}
	w.net.Links = []interpreter.Link{{Name: pod.Plan.PodInterface, Addrs: pod.IPs}}
	for _, name := range pod.Plan.Interfaces {
		w.net.Links = append(w.net.Links, interpreter.Link{Name: name, Addrs: pod.Gateways, Bridge: true})
	}
	switch pod.Plan.Mode {
	case plan.TProxy:
		w.net.Routes = append(w.net.Routes, interpreter.Route{Mark: rules.RelayMark, Mask: rules.RelayMark})
	case plan.Ambient:
		w.net.Routes = append(w.net.Routes, interpreter.Route{Mark: rules.ToLoopbackMark, Mask: rules.IstioMarkBits})
	}
	if mark := pod.Plan.Mesh.TProxyMark; mark != 0 {
		w.net.Routes = append(w.net.Routes, interpreter.Route{Mark: mark, Mask: 0xffffffff})
	}
	w.others = append(w.kubevirtOthers(), w.istioOthers()...) // KubeVirt's are made later, and so come first
	return w
}

// walk is the first packet of the current leg.
func (w *world) walk(p interpreter.Packet) (alive bool, arrived interpreter.Packet, err error) {
	if p.In != "" {
		alive, err = w.enter(&p, &w.leg.First)
	} else {
		alive, err = w.leave(&p, &w.leg.First)
	}
	if !alive || err != nil {
		return alive, p, err
	}
	w.leg.Out = p.Out
	return true, p, nil
}

// reply is the first answer: from where the packet went, to whom was seen there.
func (w *world) reply(first interpreter.Packet) error {
	r := interpreter.Packet{In: first.Out, Proto: first.Proto, Src: first.Dst, Dst: first.Src, State: expr.CtStateBitESTABLISHED, Reply: true}
	enter := w.enter
	if r.In == "" {
		r.Owner, enter = &interpreter.Owner{}, w.leave
	}
	alive, err := enter(&r, &w.leg.Reply)
	if err == nil && !alive {
		err = fmt.Errorf("the reply %s -> %s is dropped", first.Dst, first.Src)
	}
	return err
}

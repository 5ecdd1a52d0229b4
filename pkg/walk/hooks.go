package walk

import (
	"cmp"
	"fmt"
	"math"
	"slices"

	"github.com/meshvirt/meshvirt/pkg/interpreter"
	"github.com/meshvirt/meshvirt/pkg/nft"
)

// Linux is who made a step that is no chain's.
const Linux = "Linux"

// A Step is a chain that the kernel called for a packet, of ours or of somebody else.
type Step struct {
	Who      string // whose chain: MeshVirt, Istio or KubeVirt; or Linux
	Hook     nft.Hook
	Priority int32
	Chain    string // its name, if it is ours
	// Rules are those that matched, in order, jumps among them. Others' chains have one, without expressions.
	Rules []interpreter.Match
	// Before and After are the packet.
	Before, After interpreter.Packet
	Dropped       bool
}

// Where connection tracking and translation of addresses are, whatever the priorities of nat chains, which
// order these among themselves (netfilter_ipv4.h).
const (
	tracking = -200
	natDst   = -100
	natSrc   = 100
)

// A stop is a place in a hook: a chain of ours, or rules of others.
type stop struct {
	who      string
	nat      bool
	priority int32
	at       int32                                   // the priority at which it is called
	chain    *nft.Chain                              // of ours, else nil
	do       func(*interpreter.Packet) (text string) // of others; empty if it does not match
}

// stops are all of a hook, in the order in which the kernel comes to them.
func (w *world) stops(hook nft.Hook) []stop {
	var all []stop
	add := func(s stop) {
		s.at = s.priority
		if s.nat {
			s.at = natDst
			if hook == nft.Postrouting {
				s.at = natSrc
			}
		}
		all = append(all, s)
	}
	for _, c := range slices.Backward(w.table.Chains()) { // of equal priorities the last one first
		if c.Base != nil && c.Base.Hook == hook {
			add(stop{who: "MeshVirt", nat: c.Base.NAT, priority: c.Base.Priority, chain: c})
		}
	}
	for _, o := range w.others {
		if o.hook == hook {
			add(stop{who: o.who, nat: o.nat, priority: o.priority, do: o.do})
		}
	}
	slices.SortStableFunc(all, func(a, b stop) int {
		return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.priority, b.priority))
	})
	return all
}

// hook calls every chain of a hook for a packet. alive is false if one drops it.
func (w *world) hook(hook nft.Hook, p *interpreter.Packet, seen *[]Step, only ...int32) (alive bool, err error) {
	for _, s := range w.stops(hook) {
		if len(only) > 0 && !slices.Contains(only, s.priority) {
			continue
		}
		if s.at > tracking {
			if err := w.track(p); err != nil {
				return false, err
			}
		}
		if s.at >= natDst && p.Conn != nil {
			p.Restore(hook)
		}
		if s.nat && !p.Undecided(hook) {
			continue
		}
		step := Step{Who: s.who, Hook: hook, Priority: s.priority, Before: p.Copy()}
		if s.do != nil {
			text := s.do(p)
			if text == "" {
				continue
			}
			step.Rules = []interpreter.Match{{Action: text}}
		} else {
			step.Chain = s.chain.Name
			if step.Rules, step.Dropped, err = interpreter.Run(w.table, w.net, s.chain, p); err != nil {
				return false, fmt.Errorf("hook %s, priority %d: %w", hook, s.priority, err)
			}
		}
		step.After = p.Copy()
		*seen = append(*seen, step)
		if step.Dropped {
			return false, nil
		}
	}
	if err := w.track(p); err != nil {
		return false, err
	}
	p.Restore(hook)
	p.Decide(hook)
	return true, nil
}

// track finds the packet's connection. A template with a zone, set before, becomes part of it.
func (w *world) track(p *interpreter.Packet) error {
	var zone uint16
	if p.Conn != nil {
		zone = p.Conn.Zone
	}
	switch {
	case p.Conn != nil && p.Conn.Dst.IsValid():
	case !p.Reply:
		w.leg.Conn = &interpreter.Conn{Zone: zone, Src: p.Src, Dst: p.Dst, Presented: p.Src, Real: p.Dst}
		p.Conn = w.leg.Conn
	case zone != w.leg.Conn.Zone:
		return fmt.Errorf("the reply %s -> %s is in zone %d, its connection in %d: it would be lost", p.Src, p.Dst, zone, w.leg.Conn.Zone)
	default:
		p.Conn = w.leg.Conn
	}
	return nil
}

// enter is the way of a packet that comes in by an interface. If it is for the pod, Out stays empty.
func (w *world) enter(p *interpreter.Packet, seen *[]Step) (alive bool, err error) {
	if alive, err = w.hook(nft.Prerouting, p, seen); !alive || err != nil {
		return alive, err
	}
	if w.BridgeNF && w.net.Link(p.In).Bridge {
		// That was at the bridge, which takes the socket off. As an IP packet it meets only what was made
		// behind br_netfilter's own hook (bridgedPrerouting of package rules).
		if p.Socket != 0 {
			note(p, seen, "the bridge takes the socket off again (br_netfilter)")
		}
		p.Socket = 0
		if alive, err = w.hook(nft.Prerouting, p, seen, math.MinInt32); !alive || err != nil {
			return alive, err
		}
	}
	if w.net.Delivers(p) {
		if !w.net.Local(p.Dst.Addr()) {
			note(p, seen, fmt.Sprintf("mark %#x: delivered in the pod by a policy route", p.Mark))
		}
		return true, nil
	}
	p.Out = w.net.To(p.Dst.Addr())
	if alive, err = w.hook(nft.Forward, p, seen); !alive || err != nil {
		return alive, err
	}
	return w.hook(nft.Postrouting, p, seen)
}

// note tells of what the kernel does besides calling chains.
func note(p *interpreter.Packet, seen *[]Step, text string) {
	c := p.Copy()
	*seen = append(*seen, Step{Who: Linux, Rules: []interpreter.Match{{Action: text}}, Before: c, After: c})
}

// leave is the way of a packet of a process's, which may lead back into the pod by lo.
func (w *world) leave(p *interpreter.Packet, seen *[]Step) (alive bool, err error) {
	to := p.Dst.Addr()
	p.Out = w.net.Route(p)
	if alive, err = w.hook(nft.Output, p, seen); !alive || err != nil {
		return alive, err
	}
	if p.Dst.Addr() != to { // translated, and so routed again
		p.Out = w.net.Route(p)
	}
	if alive, err = w.hook(nft.Postrouting, p, seen); !alive || err != nil || p.Out != "lo" {
		return alive, err
	}
	p.In, p.Out, p.Owner = "lo", "", nil
	return w.hook(nft.Prerouting, p, seen)
}

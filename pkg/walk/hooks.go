package walk

import (
	"cmp"
	"fmt"
	"math"
	"slices"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/meshvirt/meshvirt/pkg/nft"
)

// A Step is a chain that the kernel called for a packet, of ours or of somebody else.
type Step struct {
	Who      string // whose chain
	Hook     nft.Hook
	Priority int32
	Chain    string // its name, if it is ours
	// Rules are those that matched, in order, jumps among them. Others' chains have one, without expressions.
	Rules []Match
	// Before and After are the packet.
	Before, After Packet
	Dropped       bool
}

// A Match is a rule that matched: the chain that it is in, what it does besides matching, and why it is there.
type Match struct{ Chain, Action, Why string }

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
	at       int32                       // the priority at which it is called
	chain    *nft.Chain                  // of ours, else nil
	do       func(*Packet) (text string) // of others; empty if it does not match
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
func (w *world) hook(hook nft.Hook, p *Packet, seen *[]Step, only ...int32) (alive bool, err error) {
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
			p.back(hook)
		}
		if s.nat && !p.undecided(hook) {
			continue
		}
		step := Step{Who: s.who, Hook: hook, Priority: s.priority, Before: p.copy()}
		if s.do != nil {
			text := s.do(p)
			if text == "" {
				continue
			}
			step.Rules = []Match{{Action: text}}
		} else {
			step.Chain = s.chain.Name
			m := machine{table: w.table, chains: w.byName, net: w.net, nat: s.nat}
			var v verdict
			if step.Rules, v, err = m.call(s.chain, p); err != nil {
				return false, fmt.Errorf("hook %s, priority %d: %w", hook, s.priority, err)
			}
			step.Dropped = v == dropped
		}
		step.After = p.copy()
		*seen = append(*seen, step)
		if step.Dropped {
			return false, nil
		}
	}
	if err := w.track(p); err != nil {
		return false, err
	}
	p.back(hook)
	if hook == nft.Prerouting || hook == nft.Output {
		p.Conn.decidedDst = true
	}
	if hook == nft.Postrouting {
		p.Conn.decidedSrc = true
	}
	return true, nil
}

// track finds the packet's connection. A template with a zone, set before, becomes part of it.
func (w *world) track(p *Packet) error {
	var zone uint16
	if p.Conn != nil {
		zone = p.Conn.Zone
	}
	switch {
	case p.Conn != nil && p.Conn.Dst.IsValid():
	case !p.Reply:
		w.leg.Conn = &Conn{Zone: zone, Src: p.Src, Dst: p.Dst, Presented: p.Src, Real: p.Dst}
		p.Conn = w.leg.Conn
	case zone != w.leg.Conn.Zone:
		return fmt.Errorf("the reply %s -> %s is in zone %d, its connection in %d: it would be lost", p.Src, p.Dst, zone, w.leg.Conn.Zone)
	default:
		p.Conn = w.leg.Conn
	}
	return nil
}

// undecided reports whether nat chains are called: for the first packet, until one has decided.
func (p *Packet) undecided(hook nft.Hook) bool {
	if p.State != expr.CtStateBitNEW || p.Reply {
		return false
	}
	if hook == nft.Postrouting {
		return !p.Conn.decidedSrc
	}
	return !p.Conn.decidedDst
}

// back translates a reply back, where the kernel translates.
func (p *Packet) back(hook nft.Hook) {
	if !p.Reply || p.Conn == nil {
		return
	}
	if (hook == nft.Prerouting || hook == nft.Output) && p.Dst == p.Conn.Presented {
		p.Dst = p.Conn.Src
	}
	if hook == nft.Postrouting && p.Src == p.Conn.Real {
		p.Src = p.Conn.Dst
	}
}

func (p *Packet) copy() Packet {
	c := *p
	if p.Conn != nil {
		conn := *p.Conn
		c.Conn = &conn
	}
	return c
}

// enter is the way of a packet that comes in by an interface. If it is for the pod, Out stays empty.
func (w *world) enter(p *Packet, seen *[]Step) (alive bool, err error) {
	if alive, err = w.hook(nft.Prerouting, p, seen); !alive || err != nil {
		return alive, err
	}
	if w.BridgeNF && w.net.link(p.In).Bridge {
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
	if w.net.delivers(p) {
		if w.net.kind(p.Dst.Addr(), "") != unix.RTN_LOCAL {
			note(p, seen, fmt.Sprintf("mark %#x: delivered in the pod by a policy route", p.Mark))
		}
		return true, nil
	}
	p.Out = w.net.to(p.Dst.Addr())
	if alive, err = w.hook(nft.Forward, p, seen); !alive || err != nil {
		return alive, err
	}
	return w.hook(nft.Postrouting, p, seen)
}

// note tells of what the kernel does besides calling chains.
func note(p *Packet, seen *[]Step, text string) {
	c := p.copy()
	*seen = append(*seen, Step{Who: linux, Rules: []Match{{Action: text}}, Before: c, After: c})
}

// leave is the way of a packet of a process's, which may lead back into the pod by lo.
func (w *world) leave(p *Packet, seen *[]Step) (alive bool, err error) {
	to := p.Dst.Addr()
	p.Out = w.net.route(p)
	if alive, err = w.hook(nft.Output, p, seen); !alive || err != nil {
		return alive, err
	}
	if p.Dst.Addr() != to { // translated, and so routed again
		p.Out = w.net.route(p)
	}
	if alive, err = w.hook(nft.Postrouting, p, seen); !alive || err != nil || p.Out != "lo" {
		return alive, err
	}
	p.In, p.Out, p.Owner = "lo", "", nil
	return w.hook(nft.Prerouting, p, seen)
}

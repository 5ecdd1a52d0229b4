package interpreter

import (
	"encoding/binary"
	"net/netip"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/meshvirt/meshvirt/pkg/nft"
)

// A Packet is what rules can see of one, and what happened to it.
type Packet struct {
	In, Out  string // names of interfaces, empty if it has not come in or is not about to go out
	Proto    uint8
	Src, Dst netip.AddrPort // of port 0 if the protocol has none
	Mark     uint32
	// Owner is whose socket sends it. It is nil for what comes from outside, which has none.
	Owner *Owner
	// State is the connection's as the rules ask for it, one of the expr.CtStateBits, once Conn is known.
	State uint32
	Reply bool
	// Conn is the connection that the packet belongs to, nil until it is tracked.
	Conn *Conn
	// Socket is the port of the listener that TPROXY gave the packet to, else 0.
	Socket uint16
}

// An Owner is user and group of a process.
type Owner struct{ UID, GID uint32 }

// A Conn is a connection as the kernel tracks it.
type Conn struct {
	Mark     uint32
	Zone     uint16
	Src, Dst netip.AddrPort // as it came
	// Real is where it went and Presented whom the other end saw. Where they differ from Dst and Src, an
	// address was translated.
	Presented, Real netip.AddrPort
	// decidedDst and decidedSrc say that no further nat chain is asked: one has decided, or all were asked.
	decidedDst, decidedSrc bool
}

// New is the first packet of a connection.
func New(in string, proto uint8, src, dst netip.AddrPort) Packet {
	return Packet{In: in, Proto: proto, Src: src, Dst: dst, State: expr.CtStateBitNEW}
}

// IPv6 reports whether the packet is of that family.
func (p *Packet) IPv6() bool { return p.Dst.Addr().Is6() }

// network is the packet's IP header as far as rules read it, transport the first bytes behind it.
func (p *Packet) network() []byte {
	if p.IPv6() {
		return append(append(make([]byte, 8), p.Src.Addr().AsSlice()...), p.Dst.Addr().AsSlice()...)
	}
	return append(append(make([]byte, 12), p.Src.Addr().AsSlice()...), p.Dst.Addr().AsSlice()...)
}

func (p *Packet) transport() []byte {
	if p.Proto != unix.IPPROTO_TCP && p.Proto != unix.IPPROTO_UDP {
		return nil
	}
	return binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, p.Src.Port()), p.Dst.Port())
}

// DNAT sets up a translation of the destination.
func (p *Packet) DNAT(to netip.AddrPort) {
	p.Dst, p.Conn.Real, p.Conn.decidedDst = to, to, true
}

// SNAT sets up a translation of the source, whose port is kept.
func (p *Packet) SNAT(to netip.Addr) {
	p.Src = netip.AddrPortFrom(to, p.Src.Port())
	p.Conn.Presented, p.Conn.decidedSrc = p.Src, true
}

// Undecided reports whether the nat chains of a hook are called: for the first packet, until one has decided.
func (p *Packet) Undecided(hook nft.Hook) bool {
	if p.State != expr.CtStateBitNEW || p.Reply {
		return false
	}
	if hook == nft.Postrouting {
		return !p.Conn.decidedSrc
	}
	return !p.Conn.decidedDst
}

// Decide says that all nat chains of a hook were asked, and none will be again.
func (p *Packet) Decide(hook nft.Hook) {
	switch hook {
	case nft.Prerouting, nft.Output:
		p.Conn.decidedDst = true
	case nft.Postrouting:
		p.Conn.decidedSrc = true
	}
}

// Restore translates a reply back, in the hooks where the kernel translates.
func (p *Packet) Restore(hook nft.Hook) {
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

// Copy is the packet as it is now, with its connection.
func (p *Packet) Copy() Packet {
	c := *p
	if p.Conn != nil {
		conn := *p.Conn
		c.Conn = &conn
	}
	return c
}

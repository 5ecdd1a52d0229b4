package walk

import (
	"encoding/binary"
	"net/netip"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
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

func (p *Packet) ipv6() bool { return p.Dst.Addr().Is6() }

// network is the packet's IP header as far as rules read it, transport the first bytes behind it.
func (p *Packet) network() []byte {
	if p.ipv6() {
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

// A Network is what the pod's routing knows.
type Network struct {
	// Links are the pod's interfaces with their addresses, lo not among them. Everywhere else is behind the first.
	Links []Link
	// Routes deliver marked packets in the pod, whatever their destination.
	Routes []Route
}

// A Link is an interface. Its first address of a family is the one that the kernel itself sends from.
type Link struct {
	Name  string
	Addrs []netip.Prefix
	// Bridge says that packets come in through a bridge.
	Bridge bool
}

// A Route is a policy route by mark.
type Route struct{ Mark, Mask uint32 }

var linkLocal = netip.MustParsePrefix("fe80::/10")

func (n Network) link(name string) Link {
	for _, l := range n.Links {
		if l.Name == name {
			return l
		}
	}
	return Link{Name: name}
}

// source is an address of the link in the family of a.
func (l Link) source(a netip.Addr) netip.Addr {
	for _, own := range l.Addrs {
		if own.Addr().Is4() == a.Is4() {
			return own.Addr()
		}
	}
	return netip.Addr{}
}

// kind is the type of an address (fib ... type), to the link of that name alone or, if empty, to the pod.
// What other interfaces have is unicast to a link.
func (n Network) kind(a netip.Addr, link string) uint32 {
	switch {
	case a.IsMulticast():
		return unix.RTN_MULTICAST
	case a.Is4() && a.As4()[0] == 0, a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return unix.RTN_BROADCAST
	case a.IsLoopback(), a == source6:
		if link == "" || link == "lo" {
			return unix.RTN_LOCAL
		}
		return unix.RTN_UNICAST
	}
	for _, l := range n.Links {
		for _, own := range l.Addrs {
			switch {
			case link != "" && l.Name != link:
			case a == own.Addr():
				return unix.RTN_LOCAL
			case a.Is4() && own.Contains(a) && a == last(own):
				return unix.RTN_BROADCAST
			}
		}
	}
	return unix.RTN_UNICAST
}

// last is the broadcast address of an IPv4 network.
func last(p netip.Prefix) netip.Addr {
	a := p.Addr().As4()
	return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, binary.BigEndian.Uint32(a[:])|1<<(32-p.Bits())-1)))
}

// to is the link by which packets to a leave the pod.
func (n Network) to(a netip.Addr) string {
	if n.kind(a, "") == unix.RTN_LOCAL {
		return "lo"
	}
	for _, l := range n.Links {
		for _, own := range l.Addrs {
			if own.Contains(a) {
				return l.Name
			}
		}
	}
	return n.Links[0].Name
}

// wayBack reports whether a packet from a may have come in by the link. Nothing comes from the pod's own
// addresses, and the way to link-local ones is any link.
func (n Network) wayBack(a netip.Addr, link string) bool {
	return linkLocal.Contains(a) || n.to(a) == link && n.kind(a, "") == unix.RTN_UNICAST
}

// delivers reports whether a packet is for the pod: by its destination, or by a policy route for its mark.
func (n Network) delivers(p *Packet) bool {
	if n.kind(p.Dst.Addr(), "") == unix.RTN_LOCAL {
		return true
	}
	for _, r := range n.Routes {
		if p.Mark&r.Mask == r.Mark {
			return true
		}
	}
	return false
}

// route is the link by which a packet of the pod's own leaves, lo if it is for the pod itself.
func (n Network) route(p *Packet) string {
	if n.delivers(p) {
		return "lo"
	}
	return n.to(p.Dst.Addr())
}

package interpreter

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// A Network is what the pod's routing knows.
type Network struct {
	// Links are the pod's interfaces with their addresses, lo not among them. Everywhere else is behind the first.
	Links []Link
	// Loopback are addresses of lo besides 127.0.0.0/8 and ::1.
	Loopback []netip.Addr
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

// Link is the interface of that name, without addresses if there is none.
func (n Network) Link(name string) Link {
	for _, l := range n.Links {
		if l.Name == name {
			return l
		}
	}
	return Link{Name: name}
}

// Source is an address of the link in the family of a.
func (l Link) Source(a netip.Addr) netip.Addr {
	for _, own := range l.Addrs {
		if own.Addr().Is4() == a.Is4() {
			return own.Addr()
		}
	}
	return netip.Addr{}
}

// Local reports whether a is an address of the pod, on whatever interface.
func (n Network) Local(a netip.Addr) bool { return n.kind(a, "") == unix.RTN_LOCAL }

// Here is where a redirection of a packet leads: to the interface's own address, or to the loopback from a process.
func (n Network) Here(p *Packet) netip.Addr {
	switch {
	case p.In != "":
		return n.Link(p.In).Source(p.Dst.Addr())
	case p.IPv6():
		return netip.IPv6Loopback()
	}
	return netip.AddrFrom4([4]byte{127, 0, 0, 1})
}

// kind is the type of an address (fib ... type), to the link of that name alone or, if empty, to the pod.
// What other interfaces have is unicast to a link.
func (n Network) kind(a netip.Addr, link string) uint32 {
	switch {
	case a.IsMulticast():
		return unix.RTN_MULTICAST
	case a.Is4() && a.As4()[0] == 0, a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return unix.RTN_BROADCAST
	case a.IsLoopback(), slices.Contains(n.Loopback, a):
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

// To is the link by which packets to a leave the pod.
func (n Network) To(a netip.Addr) string {
	if n.Local(a) {
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
	return linkLocal.Contains(a) || n.To(a) == link && n.kind(a, "") == unix.RTN_UNICAST
}

// Delivers reports whether a packet is for the pod: by its destination, or by a policy route for its mark.
func (n Network) Delivers(p *Packet) bool {
	if n.Local(p.Dst.Addr()) {
		return true
	}
	for _, r := range n.Routes {
		if p.Mark&r.Mask == r.Mark {
			return true
		}
	}
	return false
}

// Route is the link by which a packet of the pod's own leaves, lo if it is for the pod itself.
func (n Network) Route(p *Packet) string {
	if n.Delivers(p) {
		return "lo"
	}
	return n.To(p.Dst.Addr())
}

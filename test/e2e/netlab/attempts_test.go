package netlab

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/meshvirt/meshvirt/test/e2e/netlab/agent"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/packet"
)

// self is the guest's address in the family of a.
func self(a netip.Addr) netip.Addr {
	if a.Is4() {
		return GuestIP4
	}
	return GuestIP6
}

// one is an attempt of one packet.
func one(name string, dst netip.Addr, p func(env) packet.IP) attempt {
	return attempt{name: name, v6: dst.Is6(), make: func(e env) []agent.Frame { return []agent.Frame{frame(p(e).Bytes())} }}
}

// send is an attempt of one packet of some protocol. An invalid source is the guest's.
func send(protocol string, src, dst netip.Addr, port uint16) attempt {
	name := fmt.Sprintf("%s to %s", protocol, dst)
	if port != 0 {
		name = fmt.Sprintf("%s to %s", protocol, at(dst, port))
	}
	if src.IsValid() {
		name += " from " + src.String()
	} else {
		src = self(dst)
	}
	return one(name, dst, func(e env) packet.IP { return build(protocol, at(src, e.port), at(dst, port), e.tag) })
}

// flags are those of segments by name.
var flags = map[string]byte{
	"tcp": packet.SYN, "ack": packet.ACK, "rst": packet.RST, "fin": packet.FIN, "syn-ack": packet.SYN | packet.ACK, "null": 0,
	"xmas": packet.FIN | packet.PSH | packet.URG,
}

func build(protocol string, src, dst netip.AddrPort, tag string) packet.IP {
	if f, ok := flags[protocol]; ok {
		return packet.NewTCP(src, dst, f, 1000, []byte(tag))
	}
	other := packet.IP{Src: src.Addr(), Dst: dst.Addr()}
	switch protocol {
	case "udp":
		return packet.NewUDP(src, dst, []byte(tag))
	case "icmp":
		return echo(src.Addr(), dst.Addr(), src.Port(), tag)
	case "ipip": // a connection to the pod's loopback inside
		inner := packet.NewTCP(at(GuestIP4, src.Port()), netip.MustParseAddrPort("127.0.0.1:15000"), packet.SYN, 1, []byte(tag))
		other.Protocol, other.Body = packet.IPIP, inner.Bytes()
	case "gre":
		other.Protocol, other.Body = packet.GRE, append([]byte{0, 0, 8, 0}, tag...)
	case "esp":
		other.Protocol, other.Body = packet.ESP, append([]byte{0, 0, 1, 0, 0, 0, 0, 1}, tag...)
	case "sctp":
		other.Protocol, other.Body = packet.SCTP, append(make([]byte, 12), tag...)
		binary.BigEndian.PutUint16(other.Body, src.Port())
		binary.BigEndian.PutUint16(other.Body[2:], 15000)
	case "udplite":
		other.Protocol, other.Body = packet.UDPLite, append(make([]byte, 8), tag...)
		binary.BigEndian.PutUint16(other.Body, src.Port())
		binary.BigEndian.PutUint16(other.Body[2:], 15000)
	default:
		panic("no protocol " + protocol)
	}
	return other
}

// each sends every protocol to every address.
func each(protocols []string, src netip.Addr, dsts []netip.Addr, ports ...uint16) (out []attempt) {
	for _, dst := range dsts {
		for _, p := range protocols {
			for _, port := range ports {
				out = append(out, send(p, src, dst, port))
			}
		}
	}
	return out
}

// bridgeLink is the bridge's link-local address, by its hardware address.
var bridgeLink = netip.MustParseAddr("fe80::ff:fe00:0")

// awkward are packets to Envoy's admin port whose headers are somewhere unusual.
func awkward(protocol string, dst netip.Addr) (out []attempt) {
	to := at(dst, 15000)
	whole := func(e env) packet.IP { return build(protocol, at(self(dst), e.port), to, e.tag) }
	pieces := func(name, vain string, cut func(n int) []packet.Piece) {
		out = append(out, attempt{name: fmt.Sprintf("%s, %s to %s", name, protocol, to), v6: dst.Is6(), vain: vain, make: func(e env) (frames []agent.Frame) {
			ip := whole(e)
			for _, f := range ip.Fragments(e.port, cut(len(ip.Body))...) {
				frames = append(frames, frame(f))
			}
			return frames
		}})
	}
	with := func(name string, change func(*packet.IP)) {
		out = append(out, one(fmt.Sprintf("%s, %s to %s", name, protocol, to), dst, func(e env) packet.IP {
			p := whole(e)
			change(&p)
			return p
		}))
	}
	short := ""
	if dst.Is6() && protocol == "tcp" {
		short = shortHeader
	}
	pieces("first fragment of 8 bytes", short, func(n int) []packet.Piece { return []packet.Piece{{0, 8}, {8, n}} })
	pieces("fragments in the wrong order", "", func(n int) []packet.Piece { return []packet.Piece{{n - n%8 - 8, n}, {0, n - n%8 - 8}} })
	pieces("overlapping fragments", overlap, func(n int) []packet.Piece { return []packet.Piece{{0, 16}, {8, n}} })
	if dst.Is4() {
		with("a recorded route", func(p *packet.IP) { p.Options = []byte{7, 7, 4, 0, 0, 0, 0, 0} })
		return out
	}
	pieces("an atomic fragment", "", func(n int) []packet.Piece { return []packet.Piece{{0, n}} })
	for name, x := range map[string]packet.Extension{
		"hop-by-hop options":                {Kind: packet.HopByHop, Body: []byte{0, 1, 4, 0, 0, 0, 0}},
		"destination options":               {Kind: packet.Options, Body: []byte{0, 1, 4, 0, 0, 0, 0}},
		"a routing header that has arrived": {Kind: packet.Routing, Body: append([]byte{2, 0, 0, 0, 0, 0, 0}, dst.AsSlice()...)},
	} {
		with(name, func(p *packet.IP) { p.Extensions = []packet.Extension{x} })
	}
	return out
}

// frames are connections to the pod's loopback in unusual Ethernet frames.
func frames() []attempt {
	syn := func(e env) []byte {
		return build("tcp", at(GuestIP4, e.port), netip.MustParseAddrPort("127.0.0.1:15000"), e.tag).Bytes()
	}
	vlan := func(id byte) func(env) []agent.Frame {
		return func(e env) []agent.Frame {
			return []agent.Frame{{To: bridgeMAC, Type: unix.ETH_P_8021Q, Body: append([]byte{0, id, 8, 0}, syn(e)...)}}
		}
	}
	return []attempt{
		{name: "a priority tag (VLAN 0)", make: vlan(0)},
		{name: "VLAN 5", make: vlan(5), vain: otherHost},
		{name: "UDP in a frame to everybody", make: func(e env) []agent.Frame {
			f := frame(build("udp", at(GuestIP4, e.port), netip.MustParseAddrPort("127.0.0.1:15053"), e.tag).Bytes())
			f.To = "ff:ff:ff:ff:ff:ff"
			return []agent.Frame{f}
		}},
	}
}

func sourceRoutes() (out []attempt) {
	for name, kind := range map[string]byte{"a loose source route": 131, "a strict source route": 137} {
		for _, via := range []netip.Addr{BridgeIP4, PodIP4} {
			out = append(out, one(fmt.Sprintf("%s by %s", name, via), via, func(e env) packet.IP {
				p := build("udp", at(GuestIP4, e.port), at(via, 15053), e.tag)
				p.Options = []byte{kind, 7, 4, 127, 0, 0, 1, 0}
				return p
			}))
		}
	}
	for name, kind := range map[string]byte{"routing header type 0": 0, "segment routing header": 4} {
		for _, via := range []netip.Addr{BridgeIP6, PodIP6} {
			out = append(out, one(fmt.Sprintf("%s by %s", name, via), via, func(e env) packet.IP {
				p := build("udp", at(GuestIP6, e.port), at(via, 15053), e.tag)
				last := netip.MustParseAddr("::6")
				p.Extensions = []packet.Extension{{Kind: packet.Routing, Body: append([]byte{2, kind, 1, 0, 0, 0, 0}, last.AsSlice()...)}}
				return p
			}))
		}
	}
	return inVain(routed, out...)
}

// answers pose as the peer that a process of the pod asks.
func answers() []attempt {
	return []attempt{
		one("from "+PeerIP4.String(), PodIP4, func(e env) packet.IP { return packet.NewUDP(at(PeerIP4, UDPPort), at(PodIP4, e.asks4), []byte(e.tag)) }),
		one("from "+PeerIP6.String(), PodIP6, func(e env) packet.IP { return packet.NewUDP(at(PeerIP6, UDPPort), at(PodIP6, e.asks6), []byte(e.tag)) }),
	}
}

// errorsOfOthers say, from the guest's own address, that the peer has no such port.
func errorsOfOthers() []attempt {
	about := func(e env, pod, peer netip.AddrPort) []byte {
		return append(make([]byte, 4), packet.NewUDP(pod, peer, []byte(e.tag)).Bytes()...)
	}
	return []attempt{
		one("port unreachable over IPv4", PodIP4, func(e env) packet.IP {
			return packet.NewICMP(GuestIP4, PodIP4, 3, 3, about(e, at(PodIP4, e.asks4), at(PeerIP4, UDPPort)))
		}),
		one("port unreachable over IPv6", PodIP6, func(e env) packet.IP {
			return packet.NewICMP(GuestIP6, PodIP6, 1, 4, about(e, at(PodIP6, e.asks6), at(PeerIP6, UDPPort)))
		}),
	}
}

// dhcp are a guest's messages before and after it has an address.
func dhcp() []attempt {
	broadcast := netip.MustParseAddr("255.255.255.255")
	udp := func(name string, src, dst netip.AddrPort) attempt {
		return one(name, dst.Addr(), func(e env) packet.IP { return packet.NewUDP(src, dst, []byte(e.tag)) })
	}
	return []attempt{
		udp("DHCP without an address", at(netip.IPv4Unspecified(), 68), at(broadcast, 67)),
		udp("DHCP to everybody", at(GuestIP4, 68), at(broadcast, 67)),
		udp("DHCP renewal", at(GuestIP4, 68), at(BridgeIP4, 67)),
		udp("DHCPv6", at(guestLink, 546), at(netip.MustParseAddr("ff02::1:2"), 547)),
		udp("DHCPv6 to the gateway", at(GuestIP6, 546), at(BridgeIP6, 547)),
	}
}

// neighbours are messages of neighbour discovery (RFC 4861), each with a nonce option (RFC 3971) as long as a tag.
func neighbours() []attempt {
	message := func(name string, src, dst netip.Addr, kind byte, body ...byte) attempt {
		return one(name, dst, func(e env) packet.IP {
			p := packet.NewICMP(src, dst, kind, 0, slices.Concat(body, []byte{14, 3, 0, 0, 0, 0, 0, 0}, []byte(e.tag)))
			return hopLimit255(p)
		})
	}
	target := func(a netip.Addr) []byte { return append(make([]byte, 4), a.AsSlice()...) }
	everybody, routers := netip.IPv6LinkLocalAllNodes(), netip.IPv6LinkLocalAllRouters()
	return []attempt{
		message("duplicate address detection", netip.IPv6Unspecified(), everybody, 135, target(GuestIP6)...),
		message("a neighbour solicitation", guestLink, everybody, 135, target(BridgeIP6)...),
		message("a neighbour solicitation from the guest's address", GuestIP6, BridgeIP6, 135, target(BridgeIP6)...),
		message("a router solicitation without an address", netip.IPv6Unspecified(), routers, 133, make([]byte, 4)...),
		message("a router solicitation", guestLink, routers, 133, make([]byte, 4)...),
		message("a router advertisement", guestLink, everybody, 134, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0),
	}
}

// hopLimit255 is what neighbour discovery wants, as a proof that no router sent it on.
func hopLimit255(p packet.IP) packet.IP { p.HopLimit = 255; return p }

// Package packet builds IP packets byte by byte, also such as no kernel would send.
package packet

import (
	"encoding/binary"
	"net/netip"
)

// Numbers of protocols and of IPv6's extension headers (IANA).
const (
	HopByHop = 0
	ICMP     = 1
	IPIP     = 4
	TCP      = 6
	UDP      = 17
	IPv6     = 41
	Routing  = 43
	fragment = 44
	GRE      = 47
	ESP      = 50
	ICMPv6   = 58
	Options  = 60
	SCTP     = 132
	UDPLite  = 136
)

// Flags of TCP.
const (
	FIN = 0x01
	SYN = 0x02
	RST = 0x04
	PSH = 0x08
	ACK = 0x10
	URG = 0x20
)

// IP is one packet of either version, which is that of its addresses.
type IP struct {
	Src, Dst netip.Addr
	Protocol byte // of Body
	Body     []byte
	HopLimit byte // or time to live; 0 means 64
	// Options are those of IPv4, a multiple of 4 bytes.
	Options []byte
	// Extensions are IPv6's extension headers, each without its first byte, which tells what follows.
	Extensions []Extension
}

// Extension is an extension header of IPv6: Body is all but the first byte.
type Extension struct {
	Kind byte
	Body []byte
}

// Bytes is the packet, unfragmented.
func (p IP) Bytes() []byte {
	if p.Src.Is4() {
		return p.v4(p.Body, 1, 0)
	}
	return p.v6(p.Extensions, p.Body)
}

// A Piece is a part of a packet's body: from one byte, a multiple of 8, up to another.
type Piece [2]int

// Fragments are these pieces of the packet, in their order, whether or not they make up the whole. One
// that is the whole of an IPv6 packet is an "atomic" fragment.
func (p IP) Fragments(id uint16, pieces ...Piece) (out [][]byte) {
	for _, x := range pieces {
		more := uint16(0)
		if x[1] < len(p.Body) {
			more = 1
		}
		if p.Src.Is4() {
			out = append(out, p.v4(p.Body[x[0]:x[1]], id, more<<13|uint16(x[0]/8)))
			continue
		}
		header := binary.BigEndian.AppendUint16([]byte{0}, uint16(x[0])|more)
		header = binary.BigEndian.AppendUint32(header, uint32(id))
		out = append(out, p.v6(append(p.Extensions[:len(p.Extensions):len(p.Extensions)], Extension{fragment, header}), p.Body[x[0]:x[1]]))
	}
	return out
}

func (p IP) hopLimit() byte {
	if p.HopLimit == 0 {
		return 64
	}
	return p.HopLimit
}

func (p IP) v4(body []byte, id, fragment uint16) []byte {
	n := 20 + len(p.Options)
	b := make([]byte, n, n+len(body))
	b[0], b[8], b[9] = 4<<4|byte(n/4), p.hopLimit(), p.Protocol
	binary.BigEndian.PutUint16(b[2:], uint16(n+len(body)))
	binary.BigEndian.PutUint16(b[4:], id)
	binary.BigEndian.PutUint16(b[6:], fragment)
	copy(b[12:], p.Src.AsSlice())
	copy(b[16:], p.Dst.AsSlice())
	copy(b[20:], p.Options)
	binary.BigEndian.PutUint16(b[10:], Checksum(b))
	return append(b, body...)
}

func (p IP) v6(extensions []Extension, body []byte) []byte {
	b := make([]byte, 40)
	b[0], b[6], b[7] = 6<<4, p.Protocol, p.hopLimit()
	next := 6 // where the kind of what follows is written
	for _, e := range extensions {
		b[next] = e.Kind
		next = len(b)
		b = append(append(b, p.Protocol), e.Body...)
	}
	b = append(b, body...)
	binary.BigEndian.PutUint16(b[4:], uint16(len(b)-40))
	copy(b[8:], p.Src.AsSlice())
	copy(b[24:], p.Dst.AsSlice())
	return b
}

// NewTCP is a segment; the sequence numbers are as they come.
func NewTCP(src, dst netip.AddrPort, flags byte, seq uint32, payload []byte) IP {
	b := make([]byte, 20, 20+len(payload))
	binary.BigEndian.PutUint16(b, src.Port())
	binary.BigEndian.PutUint16(b[2:], dst.Port())
	binary.BigEndian.PutUint32(b[4:], seq)
	b[12], b[13] = 5<<4, flags
	binary.BigEndian.PutUint16(b[14:], 65535)
	return withChecksum(src.Addr(), dst.Addr(), TCP, 16, append(b, payload...))
}

// NewUDP is a datagram.
func NewUDP(src, dst netip.AddrPort, payload []byte) IP {
	b := make([]byte, 8, 8+len(payload))
	binary.BigEndian.PutUint16(b, src.Port())
	binary.BigEndian.PutUint16(b[2:], dst.Port())
	binary.BigEndian.PutUint16(b[4:], uint16(8+len(payload)))
	return withChecksum(src.Addr(), dst.Addr(), UDP, 6, append(b, payload...))
}

// NewICMP is a message of ICMP, or of ICMPv6 between such addresses. Rest is what follows its checksum.
func NewICMP(src, dst netip.Addr, kind, code byte, rest []byte) IP {
	b := append([]byte{kind, code, 0, 0}, rest...)
	if src.Is6() {
		return withChecksum(src, dst, ICMPv6, 2, b)
	}
	binary.BigEndian.PutUint16(b[2:], Checksum(b))
	return IP{Src: src, Dst: dst, Protocol: ICMP, Body: b}
}

// withChecksum fills in a checksum that covers the addresses (RFC 9293, 3.1; RFC 8200, 8.1).
func withChecksum(src, dst netip.Addr, protocol byte, at int, b []byte) IP {
	pseudo := append(src.AsSlice(), dst.AsSlice()...)
	pseudo = binary.BigEndian.AppendUint32(pseudo, uint32(len(b)))
	pseudo = append(pseudo, 0, 0, 0, protocol)
	binary.BigEndian.PutUint16(b[at:], Checksum(append(pseudo, b...)))
	return IP{Src: src, Dst: dst, Protocol: protocol, Body: b}
}

// Checksum is the one's complement sum of RFC 1071.
func Checksum(b []byte) uint16 {
	var s uint32
	for i := 0; i+1 < len(b); i += 2 {
		s += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		s += uint32(b[len(b)-1]) << 8
	}
	for s>>16 != 0 {
		s = s&0xffff + s>>16
	}
	return ^uint16(s)
}

package nft

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strconv"

	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// A Word is one part of a rule in both languages. Words need not repeat what they rest on: one that reads a TCP header
// says so in l4, and the rule checks the protocol once, as nft does itself. The zero value is no word at all.
type Word struct {
	// Text is what nft prints for it, Exprs what the kernel runs for it.
	Text  string
	Exprs []expr.Any
	l3    byte // unix.NFPROTO_IPV4 or NFPROTO_IPV6 if the word reads that header, else 0
	l4    byte // unix.IPPROTO_TCP or IPPROTO_UDP if the word reads that header, else 0
	set   *Set // the set that the word looks up, if any
	// never says that no packet can match, such as a look-up in an empty set or a translation to
	// an address that there is not. A rule with such a word is left out, so that who writes rules
	// needs no conditions.
	never bool
}

// Registers: matches and addresses use the first, ports of a NAT with an address the second.
const (
	reg  = unix.NFT_REG_1
	reg2 = unix.NFT_REG_2
)

// A Field is the left side of a match: what is loaded from a packet or asked about it.
type Field struct {
	text   string
	l3, l4 byte
	load   expr.Any
}

// A Value is the right side of a match, in the byte order of the field.
type Value struct {
	text string
	data []byte
}

// Is matches the value; no packet has an address that is not valid.
func (f Field) Is(v Value) Word { return f.compare("", expr.CmpOpEq, v) }

// Not matches everything but the value.
func (f Field) Not(v Value) Word { return f.compare("!= ", expr.CmpOpNeq, v) }

func (f Field) compare(sign string, op expr.CmpOp, v Value) Word {
	return Word{
		never: len(v.data) == 0,
		Text:  f.text + " " + sign + v.text, l3: f.l3, l4: f.l4,
		Exprs: []expr.Any{f.load, &expr.Cmp{Op: op, Register: reg, Data: v.data}},
	}
}

// In matches a member of s. Nothing is a member of an empty set.
func (f Field) In(s *Set) Word {
	if s.Len() == 0 {
		return Word{never: true}
	}
	return f.lookup("@", s, false)
}

// NotIn matches everything but the members of s. It is no word at all if s is empty.
func (f Field) NotIn(s *Set) Word {
	if s.Len() == 0 {
		return Word{}
	}
	return f.lookup("!= @", s, true)
}

func (f Field) lookup(sign string, s *Set, invert bool) Word {
	return Word{
		Text: f.text + " " + sign + s.name, l3: f.l3, l4: f.l4, set: s,
		// The kernel finds a set that is made in the same transaction by its name.
		Exprs: []expr.Any{f.load, &expr.Lookup{SourceRegister: reg, SetName: s.name, Invert: invert}},
	}
}

// The fields, each as nft calls it. Those of addresses are a Family's.
var (
	// IIFName and OIFName are the interfaces by which a packet came in and goes out.
	IIFName = Field{text: "iifname", load: &expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg}}
	OIFName = Field{text: "oifname", load: &expr.Meta{Key: expr.MetaKeyOIFNAME, Register: reg}}
	// Mark is the packet's.
	Mark = Field{text: "meta mark", load: &expr.Meta{Key: expr.MetaKeyMARK, Register: reg}}
	// SKUID and SKGID are user and group of the socket that a packet is sent from.
	SKUID = Field{text: "meta skuid", load: &expr.Meta{Key: expr.MetaKeySKUID, Register: reg}}
	SKGID = Field{text: "meta skgid", load: &expr.Meta{Key: expr.MetaKeySKGID, Register: reg}}
	// TCPDport, UDPDport and UDPSport are ports, of that protocol alone.
	TCPDport = Field{text: "tcp dport", l4: unix.IPPROTO_TCP, load: transport(2)}
	UDPDport = Field{text: "udp dport", l4: unix.IPPROTO_UDP, load: transport(2)}
	UDPSport = Field{text: "udp sport", l4: unix.IPPROTO_UDP, load: transport(0)}
	// FibDaddr asks what the destination is to this network namespace; FibDaddrIif asks the same but counts
	// only the addresses of the interface that the packet came in by.
	FibDaddr    = Field{text: "fib daddr type", load: &expr.Fib{Register: reg, ResultADDRTYPE: true, FlagDADDR: true}}
	FibDaddrIif = Field{text: "fib daddr . iif type", load: &expr.Fib{Register: reg, ResultADDRTYPE: true, FlagDADDR: true, FlagIIF: true}}
)

// The values of FibDaddr and FibDaddrIif.
var (
	Local     = Value{text: "local", data: host32(unix.RTN_LOCAL)}
	Unicast   = Value{text: "unicast", data: host32(unix.RTN_UNICAST)}
	Broadcast = Value{text: "broadcast", data: host32(unix.RTN_BROADCAST)}
	Multicast = Value{text: "multicast", data: host32(unix.RTN_MULTICAST)}
)

// Name is that of an interface.
func Name(name string) Value { return Value{text: strconv.Quote(name), data: ifnameKey(name)} }

// Port is that of TCP or UDP.
func Port(p uint16) Value { return Value{text: strconv.Itoa(int(p)), data: net16(p)} }

// ID is a user or a group.
func ID(id uint32) Value { return Value{text: strconv.FormatUint(uint64(id), 10), data: host32(id)} }

// Addr is an address. It need not be valid.
func Addr(a netip.Addr) Value { return Value{text: a.String(), data: a.AsSlice()} }

// Bits is a mark.
func Bits(m uint32) Value { return Value{text: fmt.Sprintf("0x%08x", m), data: host32(m)} }

// Matches without a field.
var (
	TCP    = Word{Text: "meta l4proto tcp", l4: unix.IPPROTO_TCP}
	UDP    = Word{Text: "meta l4proto udp", l4: unix.IPPROTO_UDP}
	ICMP   = Word{Text: "meta l4proto icmp", l4: unix.IPPROTO_ICMP}
	ICMPv6 = Word{Text: "meta l4proto ipv6-icmp", l4: unix.IPPROTO_ICMPV6}

	// NoWayBack matches packets whose source has no route by the interface that they came in by. An
	// address of this network namespace has none by any.
	NoWayBack = Word{Text: "fib saddr . iif oif missing", Exprs: []expr.Any{
		&expr.Fib{Register: reg, ResultOIF: true, FlagSADDR: true, FlagIIF: true, FlagPRESENT: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: host32(0)},
	}}

	// CtNew is for a connection that has had no reply, CtEstablished for one that has had, CtRelated for an error
	// about one, CtInvalid for none at all.
	CtNew         = ctState("new", expr.CtStateBitNEW)
	CtEstablished = ctState("established", expr.CtStateBitESTABLISHED)
	CtRelated     = ctState("related", expr.CtStateBitRELATED)
	CtInvalid     = ctState("invalid", expr.CtStateBitINVALID)

	// CtOriginal is for the direction of a connection's first packet (IP_CT_DIR_ORIGINAL), CtReply for the other.
	CtOriginal = ctDirection("original", 0)
	CtReply    = ctDirection("reply", 1)
)

func ctState(name string, bit uint32) Word {
	return Word{Text: "ct state " + name, Exprs: hasBit(expr.CtKeySTATE, bit)}
}

func ctDirection(name string, direction byte) Word {
	return Word{Text: "ct direction " + name, Exprs: []expr.Any{
		&expr.Ct{Key: expr.CtKeyDIRECTION, Register: reg},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: []byte{direction}},
	}}
}

// CtMark matches connections whose mark has the bit.
func CtMark(bit uint32) Word {
	return Word{Text: fmt.Sprintf("ct mark & 0x%08x != 0x00000000", bit), Exprs: hasBit(expr.CtKeyMARK, bit)}
}

func hasBit(key expr.CtKey, bit uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: key, Register: reg},
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 4, Mask: host32(bit), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: make([]byte, 4)},
	}
}

// MarkIs matches packets whose mark, within mask, is m.
func MarkIs(m, mask uint32) Word { return compareMark("==", expr.CmpOpEq, m, mask) }

// MarkNot matches packets whose mark, within mask, is another.
func MarkNot(m, mask uint32) Word { return compareMark("!=", expr.CmpOpNeq, m, mask) }

func compareMark(sign string, op expr.CmpOp, m, mask uint32) Word {
	return Word{Text: fmt.Sprintf("meta mark & 0x%08x %s 0x%08x", mask, sign, m), Exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: reg},
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 4, Mask: host32(mask), Xor: host32(0)},
		&expr.Cmp{Op: op, Register: reg, Data: host32(m)},
	}}
}

// ifnameKey is name as the kernel compares it: 16 bytes (IFNAMSIZ), padded with zeros.
func ifnameKey(name string) []byte {
	key := make([]byte, unix.IFNAMSIZ)
	copy(key, name)
	return key
}

func host32(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }
func net16(v uint16) []byte  { return binaryutil.BigEndian.PutUint16(v) }

func network(offset, size uint32) expr.Any {
	return &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size}
}

func transport(offset uint32) expr.Any {
	return &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 2}
}

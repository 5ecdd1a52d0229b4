package rules

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strconv"

	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// A word is one part of a rule in both languages: the text that nft prints for it, and the
// expressions that the kernel runs for it. Words need not repeat what they rest on: a word that
// reads a TCP header says so in l4, and the rule checks the protocol once, as nft does itself.
type word struct {
	text  string
	l3    byte // unix.NFPROTO_IPV4 or NFPROTO_IPV6 if the word reads that header, else 0
	l4    byte // unix.IPPROTO_TCP or IPPROTO_UDP if the word reads that header, else 0
	exprs []expr.Any
	set   *set // the set that the word looks up, if any
	// never says that no packet can match, such as a look-up in an empty set or a translation to
	// an address that the guest does not have. A rule with such a word is left out, so that the
	// modes need no conditions.
	never bool
}

// Registers: matches and addresses use the first, ports of a NAT with an address the second.
const (
	reg  = unix.NFT_REG_1
	reg2 = unix.NFT_REG_2
)

// A field is the left side of a match: what is loaded from a packet or asked about it.
type field struct {
	text   string
	l3, l4 byte
	load   expr.Any
}

// A value is the right side of a match, in the byte order of the field.
type value struct {
	text string
	data []byte
}

func (f field) is(v value) word  { return f.compare("", expr.CmpOpEq, v) }
func (f field) not(v value) word { return f.compare("!= ", expr.CmpOpNeq, v) }

func (f field) compare(sign string, op expr.CmpOp, v value) word {
	return word{
		never: len(v.data) == 0, // such as an address that the guest does not have
		text:  f.text + " " + sign + v.text, l3: f.l3, l4: f.l4,
		exprs: []expr.Any{f.load, &expr.Cmp{Op: op, Register: reg, Data: v.data}},
	}
}

// in matches a member of s. Nothing is a member of an empty set.
func (f field) in(s *set) word {
	if s.empty() {
		return word{never: true}
	}
	return f.lookup("@", s, false)
}

// notIn matches everything but the members of s. It is no word at all if s is empty.
func (f field) notIn(s *set) word {
	if s.empty() {
		return word{}
	}
	return f.lookup("!= @", s, true)
}

func (f field) lookup(sign string, s *set, invert bool) word {
	return word{
		text: f.text + " " + sign + s.name, l3: f.l3, l4: f.l4, set: s,
		// The kernel finds a set that is made in the same transaction by its name.
		exprs: []expr.Any{f.load, &expr.Lookup{SourceRegister: reg, SetName: s.name, Invert: invert}},
	}
}

// The fields that occur in the modes.
var (
	iifname  = field{text: "iifname", load: &expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg}}
	oifname  = field{text: "oifname", load: &expr.Meta{Key: expr.MetaKeyOIFNAME, Register: reg}}
	skuid    = field{text: "meta skuid", load: &expr.Meta{Key: expr.MetaKeySKUID, Register: reg}}
	skgid    = field{text: "meta skgid", load: &expr.Meta{Key: expr.MetaKeySKGID, Register: reg}}
	tcpDport = field{text: "tcp dport", l4: unix.IPPROTO_TCP, load: transport(2)}
	udpDport = field{text: "udp dport", l4: unix.IPPROTO_UDP, load: transport(2)}
	udpSport = field{text: "udp sport", l4: unix.IPPROTO_UDP, load: transport(0)}
	// fibDaddr asks what the destination is to the pod; fibDaddrIif asks the same but counts only
	// the addresses of the interface that the packet came in by.
	fibDaddr    = field{text: "fib daddr type", load: &expr.Fib{Register: reg, ResultADDRTYPE: true, FlagDADDR: true}}
	fibDaddrIif = field{text: "fib daddr . iif type", load: &expr.Fib{Register: reg, ResultADDRTYPE: true, FlagDADDR: true, FlagIIF: true}}
)

// Words without a field.
var (
	tcp   = word{text: "meta l4proto tcp", l4: unix.IPPROTO_TCP}
	udp   = word{text: "meta l4proto udp", l4: unix.IPPROTO_UDP}
	icmp  = word{text: "meta l4proto icmp", l4: unix.IPPROTO_ICMP}
	icmp6 = word{text: "meta l4proto ipv6-icmp", l4: unix.IPPROTO_ICMPV6}
	// toPodItself is for an address of the pod, on whatever interface.
	toPodItself = fibDaddr.is(local)
	// toThisSide is for an address of the interface that it came in by, such as the guest's gateway.
	toThisSide    = fibDaddrIif.is(local)
	notToThisSide = fibDaddrIif.not(local)
	toBroadcast   = fibDaddr.is(value{text: "broadcast", data: host32(unix.RTN_BROADCAST)})
	toMulticast   = fibDaddr.is(value{text: "multicast", data: host32(unix.RTN_MULTICAST)})
	// toPodOrAll is for an address of the pod, and for one that the pod has with others.
	toPodOrAll = fibDaddr.not(value{text: "unicast", data: host32(unix.RTN_UNICAST)})
	// noWayBack matches packets whose source has no route by the interface that they came in by. An
	// address of the pod's own has none by any.
	noWayBack = word{text: "fib saddr . iif oif missing", exprs: []expr.Any{
		&expr.Fib{Register: reg, ResultOIF: true, FlagSADDR: true, FlagIIF: true, FlagPRESENT: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: host32(0)},
	}}
	ctNew     = ctState("new", expr.CtStateBitNEW)
	ctRelated = ctState("related", expr.CtStateBitRELATED)
	ctInvalid = ctState("invalid", expr.CtStateBitINVALID)
)

var local = value{text: "local", data: host32(unix.RTN_LOCAL)}

func ctState(name string, bit uint32) word {
	return word{text: "ct state " + name, exprs: []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: reg},
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 4, Mask: host32(bit), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: make([]byte, 4)},
	}}
}

// A family is IPv4 or IPv6. Its own word matches every packet of the family.
type family struct {
	word
	keyword      string // before the address in dnat
	digit        string // ends names of sets
	saddr, daddr field
	loopback     *set           // where the pod's processes talk to each other, never the guest
	inside       *set           // loopback, and what a process of the pod that dials it would find there
	onLink       []netip.Prefix // from where everybody may send to its link
}

var (
	ipv4 = family{
		word:     word{text: "meta nfproto ipv4", l3: unix.NFPROTO_IPV4},
		keyword:  "ip",
		digit:    "4",
		saddr:    field{text: "ip saddr", l3: unix.NFPROTO_IPV4, load: network(12, 4)},
		daddr:    field{text: "ip daddr", l3: unix.NFPROTO_IPV4, load: network(16, 4)},
		loopback: newPrefixSet("loopback4", "where the pod talks to itself", netip.MustParsePrefix("127.0.0.0/8")),
		inside: newPrefixSet("inside4", "the pod's loopback, and addresses that lead whoever dials them there",
			netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("0.0.0.0/8")),
	}
	ipv6 = family{
		word:    word{text: "meta nfproto ipv6", l3: unix.NFPROTO_IPV6},
		keyword: "ip6",
		digit:   "6",
		saddr:   field{text: "ip6 saddr", l3: unix.NFPROTO_IPV6, load: network(8, 16)},
		daddr:   field{text: "ip6 daddr", l3: unix.NFPROTO_IPV6, load: network(24, 16)},
		loopback: newPrefixSet("loopback6", "where the pod talks to itself; ::6 is the mesh's",
			netip.MustParsePrefix("::1/128"), netip.MustParsePrefix("::6/128")),
		inside: newPrefixSet("inside6", "the pod's loopback, and addresses that lead whoever dials them there; IPv4 in disguise",
			netip.MustParsePrefix("::/128"), netip.MustParsePrefix("::1/128"), netip.MustParsePrefix("::6/128"), netip.MustParsePrefix("::ffff:0:0/96")),
		onLink: []netip.Prefix{netip.MustParsePrefix("fe80::/10")},
	}
)

// familyOf is a's.
func familyOf(a netip.Addr) family {
	if a.Is4() {
		return ipv4
	}
	return ipv6
}

// Verdicts and statements.
var (
	accept     = word{text: "accept", exprs: []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}}
	masquerade = word{text: "masquerade", exprs: []expr.Any{&expr.Masq{}}}
	// countedDrop also counts, so that people see who knocks at the pod.
	countedDrop = word{text: "counter packets 0 bytes 0 drop", exprs: []expr.Any{&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop}}}
)

func jump(c *chain) word {
	return word{text: "jump " + c.name, exprs: []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: c.name}}}
}

// redirect sends a connection to port on the pod itself.
func redirect(port uint16) word {
	return word{text: fmt.Sprintf("redirect to :%d", port), exprs: []expr.Any{
		&expr.Immediate{Register: reg, Data: net16(port)},
		&expr.Redir{RegisterProtoMin: reg, Flags: unix.NF_NAT_RANGE_PROTO_SPECIFIED},
	}}
}

// dnat sends a connection to a, port unchanged. Packets of the other family pass it by.
func (f family) dnat(a netip.Addr) word {
	if !a.IsValid() {
		return word{never: true}
	}
	return word{text: fmt.Sprintf("dnat %s to %s", f.keyword, a), exprs: []expr.Any{
		&expr.Immediate{Register: reg, Data: a.AsSlice()},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(f.l3), RegAddrMin: reg},
	}}
}

// dnatPort sends a connection to an IPv4 address and port.
func dnatPort(ap netip.AddrPort) word {
	return word{text: "dnat ip to " + ap.String(), exprs: []expr.Any{
		&expr.Immediate{Register: reg, Data: ap.Addr().AsSlice()},
		&expr.Immediate{Register: reg2, Data: net16(ap.Port())},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: reg, RegProtoMin: reg2, Specified: true},
	}}
}

// freeze translates a connection to where it goes anyhow. The kernel walks the nat chains of
// everybody until one of them sets up a translation, so this keeps all later chains (the mesh's,
// KubeVirt's) from sending it elsewhere. An accept would end this chain only.
func (f family) freeze() word {
	return word{text: fmt.Sprintf("dnat %s to %s", f.keyword, f.daddr.text), l3: f.l3, exprs: []expr.Any{
		f.daddr.load,
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(f.l3), RegAddrMin: reg},
	}}
}

// setZone puts the packet into a connection tracking zone, before it is tracked.
func setZone(zone uint16) word {
	return word{text: fmt.Sprintf("ct zone set %d", zone), exprs: []expr.Any{
		&expr.Immediate{Register: reg, Data: binary.NativeEndian.AppendUint16(nil, zone)},
		&expr.Ct{Key: expr.CtKeyZONE, Register: reg, SourceRegister: true},
	}}
}

func ifname(name string) value { return value{text: strconv.Quote(name), data: ifnameKey(name)} }
func port(p uint16) value      { return value{text: strconv.Itoa(int(p)), data: net16(p)} }
func uid(u uint32) value       { return value{text: strconv.FormatUint(uint64(u), 10), data: host32(u)} }
func address(a netip.Addr) value {
	return value{text: a.String(), data: a.AsSlice()}
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

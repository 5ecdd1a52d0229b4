package nft

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Verdicts, which end a rule and more, and statements.
var (
	// Accept ends the chain, and all that jumped to it; later chains of the hook are still called.
	Accept = Word{Text: "accept", Exprs: []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}}
	// CountedDrop also counts, so that people see who knocks.
	CountedDrop = Word{Text: "counter packets 0 bytes 0 drop", Exprs: []expr.Any{&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop}}}
	// Masquerade gives a connection the source address of the interface that it goes out by.
	Masquerade = Word{Text: "masquerade", Exprs: []expr.Any{&expr.Masq{}}}
)

// Jump goes on in another chain of the table, and comes back at its end.
func Jump(c *Chain) Word {
	return Word{Text: "jump " + c.Name, Exprs: []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: c.Name}}}
}

// Redirect sends a connection to port on this host itself.
func Redirect(port uint16) Word {
	return Word{Text: fmt.Sprintf("redirect to :%d", port), Exprs: []expr.Any{
		&expr.Immediate{Register: reg, Data: net16(port)},
		&expr.Redir{RegisterProtoMin: reg, Flags: unix.NF_NAT_RANGE_PROTO_SPECIFIED},
	}}
}

// DNATPort sends a connection to an IPv4 address and port.
func DNATPort(ap netip.AddrPort) Word {
	return Word{Text: "dnat ip to " + ap.String(), Exprs: []expr.Any{
		&expr.Immediate{Register: reg, Data: ap.Addr().AsSlice()},
		&expr.Immediate{Register: reg2, Data: net16(ap.Port())},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: reg, RegProtoMin: reg2, Specified: true},
	}}
}

// SetZone puts the packet into a connection tracking zone, before it is tracked.
func SetZone(zone uint16) Word {
	return Word{Text: fmt.Sprintf("ct zone set %d", zone), Exprs: []expr.Any{
		&expr.Immediate{Register: reg, Data: binary.NativeEndian.AppendUint16(nil, zone)},
		&expr.Ct{Key: expr.CtKeyZONE, Register: reg, SourceRegister: true},
	}}
}

// SetMark replaces the packet's mark.
func SetMark(m uint32) Word {
	return Word{Text: "meta mark set " + Bits(m).text, Exprs: []expr.Any{
		&expr.Immediate{Register: reg, Data: host32(m)},
		&expr.Meta{Key: expr.MetaKeyMARK, Register: reg, SourceRegister: true},
	}}
}

// SetCtMark replaces the connection's mark.
func SetCtMark(m uint32) Word {
	return Word{Text: "ct mark set " + Bits(m).text, Exprs: []expr.Any{
		&expr.Immediate{Register: reg, Data: host32(m)},
		&expr.Ct{Key: expr.CtKeyMARK, Register: reg, SourceRegister: true},
	}}
}

// OrMark sets a bit of the packet's mark.
func OrMark(bit uint32) Word {
	return Word{Text: fmt.Sprintf("meta mark set meta mark | 0x%08x", bit), Exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: reg}, or(bit),
		&expr.Meta{Key: expr.MetaKeyMARK, Register: reg, SourceRegister: true},
	}}
}

// OrCtMark sets a bit of the connection's mark.
func OrCtMark(bit uint32) Word {
	return Word{Text: fmt.Sprintf("ct mark set ct mark | 0x%08x", bit), Exprs: []expr.Any{
		&expr.Ct{Key: expr.CtKeyMARK, Register: reg}, or(bit),
		&expr.Ct{Key: expr.CtKeyMARK, Register: reg, SourceRegister: true},
	}}
}

func or(bit uint32) expr.Any {
	return &expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 4, Mask: host32(^bit), Xor: host32(bit)}
}

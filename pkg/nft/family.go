package nft

import (
	"fmt"
	"net/netip"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// A Family is IPv4 or IPv6; there are no others.
type Family struct {
	// Any matches every packet of the family.
	Any Word
	// Saddr and Daddr are the addresses in the family's header.
	Saddr, Daddr Field
	// Digit is 4 or 6, as names of sets end.
	Digit   string
	keyword string // what nft calls it where it asks for a family
}

// The families.
var (
	IPv4 = &Family{
		Any:     Word{Text: "meta nfproto ipv4", l3: unix.NFPROTO_IPV4},
		Saddr:   Field{text: "ip saddr", l3: unix.NFPROTO_IPV4, load: network(12, 4)},
		Daddr:   Field{text: "ip daddr", l3: unix.NFPROTO_IPV4, load: network(16, 4)},
		Digit:   "4",
		keyword: "ip",
	}
	IPv6 = &Family{
		Any:     Word{Text: "meta nfproto ipv6", l3: unix.NFPROTO_IPV6},
		Saddr:   Field{text: "ip6 saddr", l3: unix.NFPROTO_IPV6, load: network(8, 16)},
		Daddr:   Field{text: "ip6 daddr", l3: unix.NFPROTO_IPV6, load: network(24, 16)},
		Digit:   "6",
		keyword: "ip6",
	}
)

// FamilyOf is a's.
func FamilyOf(a netip.Addr) *Family {
	if a.Is4() {
		return IPv4
	}
	return IPv6
}

// DNAT sends a connection to a, port unchanged. Packets of the other family pass it by. If a is not valid, no packet
// matches.
func (f *Family) DNAT(a netip.Addr) Word {
	if !a.IsValid() {
		return Word{never: true}
	}
	return Word{Text: fmt.Sprintf("dnat %s to %s", f.keyword, a), Exprs: []expr.Any{
		&expr.Immediate{Register: reg, Data: a.AsSlice()},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(f.Any.l3), RegAddrMin: reg},
	}}
}

// Freeze translates a connection to where it goes anyhow. The kernel walks the nat chains of
// everybody until one of them sets up a translation, so this keeps all later chains from sending it
// elsewhere. An accept would end this chain only.
func (f *Family) Freeze() Word {
	return Word{Text: fmt.Sprintf("dnat %s to %s", f.keyword, f.Daddr.text), l3: f.Any.l3, Exprs: []expr.Any{
		f.Daddr.load,
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(f.Any.l3), RegAddrMin: reg},
	}}
}

// TProxy gives a packet of TCP to the socket that listens on a port of this host, or to the one that a
// connection already has. The rule ends here if there is neither.
func (f *Family) TProxy(port uint16) Word {
	return Word{Text: fmt.Sprintf("tproxy %s to :%d", f.keyword, port), l3: f.Any.l3, l4: unix.IPPROTO_TCP, Exprs: []expr.Any{
		&expr.Immediate{Register: reg, Data: net16(port)},
		&expr.TProxy{Family: f.Any.l3, RegPort: reg},
	}}
}

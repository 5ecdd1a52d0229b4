package rules

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"go4.org/netipx"

	"github.com/meshvirt/meshvirt/pkg/plan"
)

// A set is a named set of the table: a look-up costs the same for one member and for thousands.
// Sets of addresses and ports are interval sets, whose members are merged, disjoint and in order.
type set struct {
	name  string
	why   string
	typ   nftables.SetDatatype
	spans []span
}

// A span is a closed range of keys, in the byte order of the set's type.
type span struct {
	text        string
	first, last []byte
}

func (s *set) empty() bool { return s == nil || len(s.spans) == 0 }

// interval reports whether the kernel compares members by range; names of interfaces it hashes.
func (s *set) interval() bool { return s.typ.Name != nftables.TypeIFName.Name }

// String gives the set as nft lists it, on one level of indentation.
func (s *set) String() string {
	var b strings.Builder
	b.WriteString("\tset " + s.name + " {\n\t\ttype " + s.typ.Name + "\n")
	if s.interval() {
		b.WriteString("\t\tflags interval\n")
	}
	b.WriteString("\t\tcomment " + strconv.Quote(s.why) + "\n\t\telements = { ")
	for i, x := range s.spans {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(x.text)
	}
	b.WriteString(" }\n\t}\n")
	return b.String()
}

// netlink gives the set and its members for the kernel, where a range is its first key and the key
// after its last, which is marked as an end. A range up to the largest key has no end.
func (s *set) netlink(t *nftables.Table) (*nftables.Set, []nftables.SetElement) {
	out := &nftables.Set{
		Table: t, Name: s.name, Comment: s.why, KeyType: s.typ,
		Interval: s.interval(), KeyByteOrder: binaryutil.BigEndian,
	}
	if !s.interval() {
		out.KeyByteOrder = binaryutil.NativeEndian // strings; nft's word for "not a number"
	}
	members := make([]nftables.SetElement, 0, 2*len(s.spans))
	for _, x := range s.spans {
		members = append(members, nftables.SetElement{Key: x.first})
		if end, ok := next(x.last); ok && s.interval() {
			members = append(members, nftables.SetElement{Key: end, IntervalEnd: true})
		}
	}
	return out, members
}

// next is the key after k, read as a big-endian number; there is none after the largest.
func next(k []byte) ([]byte, bool) {
	n := slices.Clone(k)
	for i := len(n) - 1; i >= 0; i-- {
		if n[i]++; n[i] != 0 {
			return n, true
		}
	}
	return nil, false
}

// newPrefixSet takes prefixes of one family. The set is empty (nil) without any.
func newPrefixSet(name, why string, prefixes ...netip.Prefix) *set {
	var b netipx.IPSetBuilder
	for _, p := range prefixes {
		b.AddPrefix(p)
	}
	all, err := b.IPSet()
	if err != nil || len(all.Ranges()) == 0 {
		return nil // an error means an invalid prefix, which Plan.Validate refuses
	}
	s := &set{name: name, why: why, typ: nftables.TypeIP6Addr}
	if all.Ranges()[0].From().Is4() {
		s.typ = nftables.TypeIPAddr
	}
	for _, r := range all.Ranges() {
		x := span{first: r.From().AsSlice(), last: r.To().AsSlice(), text: r.String()}
		if r.From() == r.To() {
			x.text = r.From().String()
		} else if p, ok := r.Prefix(); ok {
			x.text = p.String()
		}
		s.spans = append(s.spans, x)
	}
	return s
}

// A pair holds the set of each family, under names that end in 4 and 6.
type pair struct{ v4, v6 *set }

// newPrefixPair sorts prefixes by family.
func newPrefixPair(name, why string, prefixes []netip.Prefix) pair {
	var v4, v6 []netip.Prefix
	for _, p := range prefixes {
		if p.Addr().Is4() {
			v4 = append(v4, p)
		} else {
			v6 = append(v6, p)
		}
	}
	return pair{v4: newPrefixSet(name+"4", why, v4...), v6: newPrefixSet(name+"6", why, v6...)}
}

// newAddrPair is newPrefixPair for single addresses.
func newAddrPair(name, why string, addrs []netip.Addr) pair {
	var prefixes []netip.Prefix
	for _, a := range addrs {
		prefixes = append(prefixes, netip.PrefixFrom(a, a.BitLen()))
	}
	return newPrefixPair(name, why, prefixes)
}

// of is the set of family f.
func (p pair) of(f family) *set {
	if f.l3 == ipv4.l3 {
		return p.v4
	}
	return p.v6
}

// newPortSet takes the ports that are true. The set is empty (nil) without any.
func newPortSet(name, why string, ports *portTable) *set {
	s := &set{name: name, why: why, typ: nftables.TypeInetService}
	for _, r := range ports.ranges() {
		s.spans = append(s.spans, span{text: r.String(), first: net16(r.First), last: net16(r.Last)})
	}
	if s.empty() {
		return nil
	}
	return s
}

// newNameSet takes names of interfaces. Their order is nft's: it sorts them as numbers whose lowest
// byte is the first character (on little-endian machines).
func newNameSet(name, why string, names []string) *set {
	s := &set{name: name, why: why, typ: nftables.TypeIFName}
	for _, n := range names {
		s.spans = append(s.spans, span{text: strconv.Quote(n), first: ifnameKey(n), last: ifnameKey(n)})
	}
	slices.SortFunc(s.spans, func(a, b span) int {
		for i := len(a.first) - 1; i >= 0; i-- {
			if a.first[i] != b.first[i] {
				return int(a.first[i]) - int(b.first[i])
			}
		}
		return 0
	})
	s.spans = slices.CompactFunc(s.spans, func(a, b span) bool { return a.text == b.text })
	return s
}

// A portTable says of every port whether it is meant. Arithmetic on 65,536 flags has no edges.
type portTable [1 << 16]bool

func portTableOf(lists ...[]uint16) *portTable {
	var t portTable
	for _, l := range lists {
		for _, p := range l {
			t[p] = p != 0
		}
	}
	return &t
}

func (t *portTable) add(ranges []plan.PortRange) *portTable {
	for _, r := range ranges {
		for p := int(r.First); p <= int(r.Last); p++ {
			t[p] = true
		}
	}
	return t
}

func (t *portTable) without(o *portTable) *portTable {
	for p, x := range o {
		t[p] = t[p] && !x
	}
	return t
}

// ranges gives the ports as the fewest closed ranges, in order.
func (t *portTable) ranges() []plan.PortRange {
	var out []plan.PortRange
	for p, x := range t {
		switch {
		case !x:
		case p > 0 && t[p-1]:
			out[len(out)-1].Last = uint16(p)
		default:
			out = append(out, plan.Port(uint16(p)))
		}
	}
	return out
}

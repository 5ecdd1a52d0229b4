package nft

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"go4.org/netipx"
)

// A Set is a named set of the table: a look-up costs the same for one member and for thousands. Nil is an empty one.
// Sets of addresses and ports are interval sets, whose members are merged, disjoint and in order.
type Set struct {
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

// Len is the number of members; a range counts as one.
func (s *Set) Len() int {
	if s == nil {
		return 0
	}
	return len(s.spans)
}

// interval reports whether the kernel compares members by range; names of interfaces it hashes.
func (s *Set) interval() bool { return s.typ.Name != nftables.TypeIFName.Name }

// String gives the set as nft lists it, on one level of indentation.
func (s *Set) String() string {
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
func (s *Set) netlink(t *nftables.Table) (*nftables.Set, []nftables.SetElement) {
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

// PrefixSet takes prefixes of one family. The set is empty (nil) without any, or if one is not valid.
func PrefixSet(name, why string, prefixes ...netip.Prefix) *Set {
	var b netipx.IPSetBuilder
	for _, p := range prefixes {
		b.AddPrefix(p)
	}
	all, err := b.IPSet()
	if err != nil || len(all.Ranges()) == 0 {
		return nil // an error means an invalid prefix
	}
	s := &Set{name: name, why: why, typ: nftables.TypeIP6Addr}
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

// A Pair holds the set of each family.
type Pair struct{ V4, V6 *Set }

// PrefixPair sorts prefixes by family, into sets of names that end in 4 and 6.
func PrefixPair(name, why string, prefixes []netip.Prefix) Pair {
	var v4, v6 []netip.Prefix
	for _, p := range prefixes {
		if p.Addr().Is4() {
			v4 = append(v4, p)
		} else {
			v6 = append(v6, p)
		}
	}
	return Pair{V4: PrefixSet(name+"4", why, v4...), V6: PrefixSet(name+"6", why, v6...)}
}

// AddrPair is PrefixPair for single addresses.
func AddrPair(name, why string, addrs []netip.Addr) Pair {
	var prefixes []netip.Prefix
	for _, a := range addrs {
		prefixes = append(prefixes, netip.PrefixFrom(a, a.BitLen()))
	}
	return PrefixPair(name, why, prefixes)
}

// Of is the set of family f.
func (p Pair) Of(f *Family) *Set {
	if f == IPv4 {
		return p.V4
	}
	return p.V6
}

// NameSet takes names of interfaces. Their order is nft's: it sorts them as numbers whose lowest
// byte is the first character (on little-endian machines).
func NameSet(name, why string, names []string) *Set {
	s := &Set{name: name, why: why, typ: nftables.TypeIFName}
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

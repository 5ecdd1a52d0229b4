// Package nft is the part of nftables' language that MeshVirt speaks, as values. A ruleset is a table of chains,
// a chain is rules, a rule is words; and each word knows itself in two languages: the text that nft prints for it,
// which people read and audit, and the expressions that the kernel runs for it, which Apply writes by netlink, since
// our image holds no nft.
//
// The package knows nothing of pods, guests and meshes. What is said with its words is the matter of package rules.
package nft

import (
	"bytes"
	"slices"
	"strings"
)

// A Ruleset is one table, of nftables family inet, as a value: String shows it, Apply puts it into the kernel.
type Ruleset struct {
	name   string
	sets   []*Set
	chains []*Chain
}

// New makes a table of chains, without base chains that have no rules, and with the sets that the rules look up, in
// the order of first use. Chains are not to be changed afterwards.
func New(name string, chains ...*Chain) Ruleset {
	out := Ruleset{name: name}
	for _, c := range chains {
		if c.Base != nil && len(c.Rules) == 0 {
			continue
		}
		out.chains = append(out.chains, c)
		for _, r := range c.Rules {
			for _, w := range r.words {
				if w.set != nil && !slices.Contains(out.sets, w.set) {
					out.sets = append(out.sets, w.set)
				}
			}
		}
	}
	return out
}

// String gives the table as "nft list table" of nft 1.0.6 prints it right after Apply, and as "nft -f" takes it,
// except that nft breaks long lists of elements into lines, that its counters count, and that it writes addresses
// within ::/96 with dots (::1.2.3.4).
func (r Ruleset) String() string {
	var blocks []string
	for _, s := range r.sets {
		blocks = append(blocks, s.String())
	}
	for _, c := range r.chains {
		blocks = append(blocks, c.String())
	}
	return "table inet " + r.name + " {\n" + strings.Join(blocks, "\n") + "}\n"
}

// Chains are all chains of the table, in order.
func (r Ruleset) Chains() []*Chain { return r.chains }

// Rules is the number of rules of all chains.
func (r Ruleset) Rules() (n int) {
	for _, c := range r.chains {
		n += len(c.Rules)
	}
	return n
}

// Elements is the number of members of all sets; a range counts as one.
func (r Ruleset) Elements() (n int) {
	for _, s := range r.sets {
		n += s.Len()
	}
	return n
}

// Contains reports whether the set of that name has the key, in the byte order of the set's type.
// known is false if there is no such set.
func (r Ruleset) Contains(set string, key []byte) (member, known bool) {
	for _, s := range r.sets {
		if s.name == set {
			return slices.ContainsFunc(s.spans, func(x span) bool {
				return bytes.Compare(x.first, key) <= 0 && bytes.Compare(key, x.last) <= 0
			}), true
		}
	}
	return false, false
}

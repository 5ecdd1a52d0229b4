package rules

import (
	"bytes"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// A Chain is a chain of a table to be read, by package walk and by people's tools.
type Chain struct {
	Name string
	// Base is where the kernel calls the chain, nil if others jump to it.
	Base  *Base
	Rules []Rule
}

// A Base is the place of a chain. Chains of one place are called in the reverse of their order in
// the table: of equal priorities the kernel calls the one made last first.
type Base struct {
	Hook     string // prerouting, forward, output or postrouting
	NAT      bool   // called for the first packet of a connection, until one sets up a translation
	Priority int32
}

// A Rule is a rule in both languages, and why it is there.
type Rule struct {
	// Text is the rule as nft lists it, without its comment; Action is what of it follows the matches.
	Text, Action string
	Why          string
	// Exprs are what the kernel runs. They are not to be changed.
	Exprs []expr.Any
}

var hookNames = map[*nftables.ChainHook]string{
	nftables.ChainHookPrerouting: "prerouting", nftables.ChainHookForward: "forward",
	nftables.ChainHookOutput: "output", nftables.ChainHookPostrouting: "postrouting",
}

// Chains are all chains of the table, in order.
func (r Ruleset) Chains() []Chain {
	var all []Chain
	for _, c := range r.chains {
		out := Chain{Name: c.name}
		if c.base != nil {
			out.Base = &Base{hookNames[c.base.hook], c.base.kind == nftables.ChainTypeNAT, int32(c.base.priority)}
		}
		for _, x := range c.rules {
			out.Rules = append(out.Rules, Rule{join(x.words), join(x.words[firstAction(x.words):]), x.why, x.exprs()})
		}
		all = append(all, out)
	}
	return all
}

func join(words []word) string {
	var parts []string
	for _, w := range words {
		parts = append(parts, w.text)
	}
	return strings.Join(parts, " ")
}

// firstAction is the index of the first word that does more than to match. A match ends in a comparison,
// a look-up, or is nothing but the check of a header's protocol.
func firstAction(words []word) int {
	return slices.IndexFunc(words, func(w word) bool {
		if len(w.exprs) == 0 {
			return false
		}
		switch w.exprs[len(w.exprs)-1].(type) {
		case *expr.Cmp, *expr.Lookup:
			return false
		}
		return true
	})
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

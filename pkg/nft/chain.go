package nft

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
)

// A Chain is a list of rules. Its policy is to accept.
type Chain struct {
	Name string
	// Base is where the kernel calls the chain, nil if others jump to it.
	Base  *Base
	Rules []Rule
}

// Add appends a rule, and why it is there; or nothing if no packet could ever match it.
func (c *Chain) Add(why string, words ...Word) {
	if slices.ContainsFunc(words, func(w Word) bool { return w.never }) {
		return
	}
	words = slices.DeleteFunc(words, func(w Word) bool { return w.Text == "" })
	c.Rules = append(c.Rules, Rule{words: words, Why: why})
}

// String gives the chain as nft lists it, on one level of indentation.
func (c *Chain) String() string {
	var b strings.Builder
	b.WriteString("\tchain " + c.Name + " {\n")
	if c.Base != nil {
		b.WriteString("\t\ttype " + c.Base.String() + "; policy accept;\n")
	}
	for _, r := range c.Rules {
		b.WriteString("\t\t" + r.String() + "\n")
	}
	b.WriteString("\t}\n")
	return b.String()
}

func (c *Chain) netlink(t *nftables.Table) *nftables.Chain {
	if c.Base == nil {
		return &nftables.Chain{Name: c.Name, Table: t}
	}
	accept, kind := nftables.ChainPolicyAccept, nftables.ChainTypeFilter
	if c.Base.NAT {
		kind = nftables.ChainTypeNAT
	}
	return &nftables.Chain{
		Name: c.Name, Table: t, Type: kind, Hooknum: hooks[c.Base.Hook],
		Priority: (*nftables.ChainPriority)(&c.Base.Priority), Policy: &accept,
	}
}

// A Hook is a place in the kernel that a packet comes by.
type Hook string

// The hooks.
const (
	Prerouting  Hook = "prerouting"  // came in, or came back by lo
	Forward     Hook = "forward"     // came in and goes out again
	Output      Hook = "output"      // was sent by a process
	Postrouting Hook = "postrouting" // goes out
)

var hooks = map[Hook]*nftables.ChainHook{
	Prerouting: nftables.ChainHookPrerouting, Forward: nftables.ChainHookForward,
	Output: nftables.ChainHookOutput, Postrouting: nftables.ChainHookPostrouting,
}

// A Base is where and when the kernel calls a chain: in the order of priorities, lowest first; of equal ones the
// chain that was made last is called first.
type Base struct {
	Hook Hook
	// NAT chains are called for the first packet of a connection, until one sets up a translation; others for
	// every packet.
	NAT      bool
	Priority int32
}

// String gives the place as nft prints it, with a priority near one that has a name (and has it in this hook) as a
// sum.
func (b *Base) String() string {
	kind, priority := "filter", strconv.Itoa(int(b.Priority))
	if b.NAT {
		kind = "nat"
	}
	for _, p := range priorities {
		if d := int64(b.Priority) - p.value; d >= -reach && d <= reach && (p.hook == "" || p.hook == b.Hook) {
			priority = p.name
			if d != 0 {
				priority = fmt.Sprintf("%s %c %d", p.name, map[bool]rune{true: '+', false: '-'}[d > 0], max(d, -d))
			}
		}
	}
	return kind + " hook " + string(b.Hook) + " priority " + priority
}

// priorities are those that nft has names for. Connection tracking is at -200, between raw and mangle.
var priorities = []struct {
	name  string
	value int64
	hook  Hook // the only one in which it is called so, if any
}{
	{"raw", -300, ""}, {"mangle", -150, ""}, {"dstnat", -100, Prerouting}, {"filter", 0, ""}, {"security", 50, ""}, {"srcnat", 100, Postrouting},
}

// reach is how far from a name nft still counts from it.
const reach = 10

// A Rule is its words, from left to right, and why it is there, which nft shows as a comment. Add makes rules.
type Rule struct {
	words []Word
	Why   string
}

// String gives the rule as nft lists it.
func (r Rule) String() string { return r.Text() + " comment " + strconv.Quote(r.Why) }

// Text is the rule as nft lists it, without its comment.
func (r Rule) Text() string { return join(r.words) }

// Action is what of Text follows the matches.
func (r Rule) Action() string { return join(r.words[firstAction(r.words):]) }

// Exprs are what the kernel runs: those of the words, each header's protocol checked before it is first read. They
// are not to be changed.
func (r Rule) Exprs() []expr.Any {
	var out []expr.Any
	var l3, l4 byte
	for _, w := range r.words {
		if w.l3 != 0 && w.l3 != l3 {
			l3 = w.l3
			out = append(out, &expr.Meta{Key: expr.MetaKeyNFPROTO, Register: reg}, &expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: []byte{l3}})
		}
		if w.l4 != 0 && w.l4 != l4 {
			l4 = w.l4
			out = append(out, &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg}, &expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: []byte{l4}})
		}
		out = append(out, w.Exprs...)
	}
	return out
}

func (r Rule) netlink(t *nftables.Table, c *nftables.Chain) *nftables.Rule {
	return &nftables.Rule{Table: t, Chain: c, Exprs: r.Exprs(), UserData: userdata.AppendString(nil, userdata.TypeComment, r.Why)}
}

func join(words []Word) string {
	var parts []string
	for _, w := range words {
		parts = append(parts, w.Text)
	}
	return strings.Join(parts, " ")
}

// firstAction is the index of the first word that does more than to match, or the number of words. A match ends in a
// comparison, a look-up, or is nothing but the check of a header's protocol.
func firstAction(words []Word) int {
	i := slices.IndexFunc(words, func(w Word) bool {
		if len(w.Exprs) == 0 {
			return false
		}
		switch w.Exprs[len(w.Exprs)-1].(type) {
		case *expr.Cmp, *expr.Lookup:
			return false
		}
		return true
	})
	if i < 0 {
		return len(words)
	}
	return i
}

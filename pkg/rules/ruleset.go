package rules

import (
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
)

// Table is the name of the one table that MeshVirt owns, of nftables family inet.
const Table = "meshvirt"

// A Ruleset is the whole table as a value: Build makes it, String shows it, Apply puts it into the
// kernel. Equal plans and pods give equal rulesets.
type Ruleset struct {
	sets   []*set
	chains []*chain
}

// A chain is a list of rules; a base chain is one that the kernel itself calls.
type chain struct {
	name  string
	base  *base // nil if only jumped to
	rules []rule
}

// A base says where in the kernel a chain is called. Ours run one step before everybody else's.
type base struct {
	text     string
	kind     nftables.ChainType
	hook     *nftables.ChainHook
	priority nftables.ChainPriority
}

// The places of our chains. The kernel's names of priorities: raw is -300 and comes before
// connection tracking (-200), mangle is -150, dstnat is -100, srcnat is 100. Of two nat chains of
// the same priority the one made last runs first, so one step is what makes the order certain.
var (
	rawPrerouting    = &base{"filter hook prerouting priority raw - 1", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, -301}
	rawOutput        = &base{"filter hook output priority raw - 1", nftables.ChainTypeFilter, nftables.ChainHookOutput, -301}
	manglePrerouting = &base{"filter hook prerouting priority mangle - 1", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, -151}
	// mangledPrerouting and mangleOutput are where the mesh's TPROXY has been.
	mangledPrerouting = &base{"filter hook prerouting priority mangle + 1", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, -149}
	mangleOutput      = &base{"filter hook output priority mangle + 1", nftables.ChainTypeFilter, nftables.ChainHookOutput, -149}
	natPrerouting     = &base{"nat hook prerouting priority dstnat - 1", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, -101}
	natOutput         = &base{"nat hook output priority -101", nftables.ChainTypeNAT, nftables.ChainHookOutput, -101}
	forward           = &base{"filter hook forward priority filter", nftables.ChainTypeFilter, nftables.ChainHookForward, 0}
	natPostrouting    = &base{"nat hook postrouting priority srcnat - 1", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, 99}
)

// A rule is its words, from left to right, and why it is there, which nft shows as a comment.
type rule struct {
	words []word
	why   string
}

// String gives the rule as nft lists it.
func (r rule) String() string {
	return join(r.words) + " comment " + strconv.Quote(r.why)
}

// exprs are the expressions of the words, each header's protocol checked before it is first read.
func (r rule) exprs() []expr.Any {
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
		out = append(out, w.exprs...)
	}
	return out
}

func (r rule) netlink(t *nftables.Table, c *nftables.Chain) *nftables.Rule {
	return &nftables.Rule{Table: t, Chain: c, Exprs: r.exprs(), UserData: userdata.AppendString(nil, userdata.TypeComment, r.why)}
}

// String gives the table as "nft list table inet meshvirt" of nft 1.0.6 prints it right after
// Apply, and as "nft -f" takes it, except that nft breaks long lists of elements into lines, that
// its counters count, and that it writes addresses within ::/96 with dots (::1.2.3.4).
func (r Ruleset) String() string {
	var blocks []string
	for _, s := range r.sets {
		blocks = append(blocks, s.String())
	}
	for _, c := range r.chains {
		blocks = append(blocks, c.String())
	}
	return "table inet " + Table + " {\n" + strings.Join(blocks, "\n") + "}\n"
}

// String gives the chain as nft lists it, on one level of indentation.
func (c *chain) String() string {
	var b strings.Builder
	b.WriteString("\tchain " + c.name + " {\n")
	if c.base != nil {
		b.WriteString("\t\ttype " + c.base.text + "; policy accept;\n")
	}
	for _, r := range c.rules {
		b.WriteString("\t\t" + r.String() + "\n")
	}
	b.WriteString("\t}\n")
	return b.String()
}

// Rules is the number of rules of all chains.
func (r Ruleset) Rules() (n int) {
	for _, c := range r.chains {
		n += len(c.rules)
	}
	return n
}

// Elements is the number of members of all sets; a range counts as one.
func (r Ruleset) Elements() (n int) {
	for _, s := range r.sets {
		n += len(s.spans)
	}
	return n
}

package istio

import (
	"net/netip"
	"strings"
)

// rule is one that an option leads to. Empty fields match everything.
type rule struct {
	dst          string // a CIDR with its length
	in, out      string // interfaces
	proto, dport string
	established  bool   // the connection is known
	jump         string // a chain, in iptables' spelling, or RETURN
}

// A dialect is the language of a recording. Chains have the names that iptables gives them.
type dialect interface {
	// render gives a line for each rule of a chain.
	render(chain string, rules []rule) []string
	// find gives where the rules of the table's chain are.
	find(lines []string, table, chain string) (first, end int)
	// section gives the table from the recording of a whole ruleset.
	section(text, table string) string
	// join gives a ruleset with table mangle, where the program's own would have it.
	join(ruleset, mangle string) string
	// start gives where the first rule of a chain without one would be, negative if there is no such chain.
	start(lines []string, table, chain string) int
	// ours selects the CIDRs of the recording's family.
	ours(list) list
}

// The tables.
const (
	nat    = "nat"
	mangle = "mangle"
)

// saveText is what iptables-save (4) or ip6tables-save (6) prints.
type saveText struct{ family int }

func (saveText) render(chain string, rules []rule) []string {
	var lines []string
	for _, r := range rules {
		line := "-A " + chain
		for _, part := range []struct{ option, value string }{{"-d", r.dst}, {"-i", r.in}, {"-o", r.out}, {"-p", r.proto}} {
			if part.value != "" {
				line += " " + part.option + " " + part.value
			}
		}
		if r.dport != "" {
			line += " -m " + r.proto + " --dport " + r.dport
		}
		if r.established {
			line += " -m conntrack --ctstate RELATED,ESTABLISHED"
		}
		lines = append(lines, line+" -j "+r.jump+"\n")
	}
	return lines
}

func (saveText) find(lines []string, table, chain string) (first, end int) {
	return find(lines, "*"+table+"\n", func(line string) bool { return strings.HasPrefix(line, "-A "+chain+" ") })
}

func (saveText) section(text, table string) string { return between(text, "*"+table+"\n", "COMMIT\n") }

func (saveText) join(ruleset, mangle string) string { return mangle + ruleset }

func (s saveText) ours(l list) list {
	var ours list
	for _, c := range l {
		if netip.MustParsePrefix(c).Addr().Is4() == (s.family == 4) {
			ours = append(ours, c)
		}
	}
	return ours
}

// nftText is what nft list ruleset prints.
type nftText struct{}

func (nftText) render(_ string, rules []rule) []string {
	var lines []string
	for _, r := range rules {
		line := "\t\t"
		if r.in != "" {
			line += `iifname "` + r.in + `" `
		}
		if r.out != "" {
			line += `oifname "` + r.out + `" `
		}
		if r.dst != "" {
			p := netip.MustParsePrefix(r.dst)
			family, dst := "ip", p.String()
			if p.Addr().Is6() {
				family = "ip6"
			}
			if p.IsSingleIP() {
				dst = p.Addr().String()
			}
			line += family + " daddr " + dst + " "
		}
		switch {
		case r.dport != "":
			line += r.proto + " dport " + r.dport + " "
		case r.proto != "":
			line += "meta l4proto " + r.proto + " "
		}
		if r.established {
			line += "ct state established,related "
		}
		verdict := "jump " + nftChain(r.jump)
		if r.jump == "RETURN" {
			verdict = "return"
		}
		lines = append(lines, line+"counter packets 0 bytes 0 "+verdict+"\n")
	}
	return lines
}

func nftChain(name string) string { return strings.ToLower(strings.ReplaceAll(name, "_", "-")) }

func (nftText) find(lines []string, table, chain string) (first, end int) {
	in := false
	return find(lines, "table inet istio-proxy-"+table+" {\n", func(line string) bool {
		switch {
		case line == "\tchain "+nftChain(chain)+" {\n":
			in = true
			return false
		case line == "\t}\n":
			in = false
		}
		return in && !strings.HasPrefix(line, "\t\ttype ")
	})
}

func (nftText) section(text, table string) string {
	return between(text, "table inet istio-proxy-"+table+" {\n", "\n}\n")
}

func (nftText) join(ruleset, mangle string) string { return ruleset + mangle }

func (nftText) ours(l list) list { return l }

// find gives the first run of lines after the start of a table of which is holds.
func find(lines []string, table string, is func(string) bool) (first, end int) {
	inTable := false
	for i, line := range lines {
		inTable = inTable || line == table
		switch {
		case !inTable:
		case is(line):
			if first == end {
				first = i
			}
			end = i + 1
		case first != end:
			return first, end
		}
	}
	return first, end
}

// between gives the part of text from first to the end of the last after it, or nothing.
func between(text, first, last string) string {
	_, rest, ok := strings.Cut(text, first)
	body, _, end := strings.Cut(rest, last)
	if !ok || !end {
		return ""
	}
	return first + body + last
}

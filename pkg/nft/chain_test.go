package nft

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/google/nftables/expr"
)

// TestRuleThatCannotMatch: it is left out, and so is a match that is always true.
func TestRuleThatCannotMatch(t *testing.T) {
	c := &Chain{}
	c.Add("-", TCPDport.In(nil), Accept)
	c.Add("-", IPv6.DNAT(netip.Addr{}))
	c.Add("-", IPv4.Daddr.Is(Addr(netip.Addr{})), Accept)
	if len(c.Rules) != 0 {
		t.Errorf("got %v, want no rule", c.Rules)
	}
	c.Add("-", TCPDport.NotIn(nil), Accept)
	if want := `accept comment "-"`; len(c.Rules) != 1 || c.Rules[0].String() != want {
		t.Errorf("got %v, want %s", c.Rules, want)
	}
}

// TestNew: what has no use is not in the table.
func TestNew(t *testing.T) {
	used, unused := PortSet("used", "-", PortsOf([]uint16{1, 3})), PortSet("unused", "-", PortsOf([]uint16{2}))
	filled, empty, target := &Chain{Name: "filled", Base: &Base{Hook: Output}}, &Chain{Name: "empty", Base: &Base{Hook: Output}}, &Chain{Name: "target"}
	filled.Add("-", TCPDport.In(used), Jump(target))
	filled.Add("-", TCPDport.NotIn(used), Accept)
	filled.Add("-", TCPDport.In(unused), TCPDport.In(nil), Accept)
	r := New("t", filled, empty, target)
	want := `table inet t {
	set used {
		type inet_service
		flags interval
		comment "-"
		elements = { 1, 3 }
	}

	chain filled {
		type filter hook output priority filter; policy accept;
		tcp dport @used jump target comment "-"
		tcp dport != @used accept comment "-"
	}

	chain target {
	}
}
`
	if got := r.String(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if r.Rules() != 2 || r.Elements() != 2 {
		t.Errorf("%d rules and %d elements, want 2 and 2", r.Rules(), r.Elements())
	}
}

// TestRule: a rule tells its parts, and looks at each header's protocol once, before it reads the header.
func TestRule(t *testing.T) {
	c := &Chain{}
	c.Add("why", IPv4.Saddr.Is(Addr(netip.MustParseAddr("10.0.0.1"))), TCPDport.Is(Port(80)), TCPDport.Not(Port(81)), OrMark(1), IPv4.Freeze())
	r := c.Rules[0]
	if want := "ip saddr 10.0.0.1 tcp dport 80 tcp dport != 81 meta mark set meta mark | 0x00000001 dnat ip to ip daddr"; r.Text() != want {
		t.Errorf("text %q, want %q", r.Text(), want)
	}
	if want := "meta mark set meta mark | 0x00000001 dnat ip to ip daddr"; r.Action() != want {
		t.Errorf("action %q, want %q", r.Action(), want)
	}
	var keys []expr.MetaKey
	for _, e := range r.Exprs() {
		if m, ok := e.(*expr.Meta); ok {
			keys = append(keys, m.Key)
		}
	}
	if want := []expr.MetaKey{expr.MetaKeyNFPROTO, expr.MetaKeyL4PROTO, expr.MetaKeyMARK, expr.MetaKeyMARK}; !slices.Equal(keys, want) {
		t.Errorf("meta keys %v, want %v", keys, want)
	}
}

package interpreter

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/meshvirt/meshvirt/pkg/nft"
)

func at(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

var host = Network{
	Links: []Link{
		{Name: "eth0", Addrs: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/24"), netip.MustParsePrefix("2001:db8::1/64")}},
		{Name: "br0", Addrs: []netip.Prefix{netip.MustParsePrefix("10.0.2.1/24")}, Bridge: true},
	},
	Loopback: []netip.Addr{netip.MustParseAddr("::6")},
	Routes:   []Route{{Mark: 0x100, Mask: 0xf00}},
}

// TestRun has single rules look at one packet, which comes from the guest of a bridge to port 80 of somebody away. How
// the kernel does is tested in test/e2e/netlab, for whole rulesets.
func TestRun(t *testing.T) {
	ports := nft.PortSet("ports", "-", nft.PortsOf([]uint16{80, 443}))
	target := &nft.Chain{Name: "target"}
	target.Add("in the target", nft.CountedDrop)
	matching := func(words ...nft.Word) []nft.Word { return append(words, nft.CountedDrop) }
	for name, c := range map[string]struct {
		words   []nft.Word
		nat     bool
		matches bool
		drop    bool
		change  func(*Packet) // of the packet, by the rule
	}{
		"interface":                {words: matching(nft.IIFName.Is(nft.Name("br0"))), matches: true, drop: true},
		"another interface":        {words: matching(nft.IIFName.Is(nft.Name("eth0")))},
		"not that interface":       {words: matching(nft.IIFName.Not(nft.Name("eth0"))), matches: true, drop: true},
		"no socket":                {words: matching(nft.SKUID.Not(nft.ID(0)))},
		"port":                     {words: matching(nft.TCPDport.In(ports)), matches: true, drop: true},
		"no such port":             {words: matching(nft.TCPDport.NotIn(ports))},
		"another protocol":         {words: matching(nft.UDPDport.Is(nft.Port(80)))},
		"another family":           {words: matching(nft.IPv6.Any)},
		"source":                   {words: matching(nft.IPv4.Saddr.Is(nft.Addr(netip.MustParseAddr("10.0.2.2")))), matches: true, drop: true},
		"not to this host":         {words: matching(nft.FibDaddr.Not(nft.Local)), matches: true, drop: true},
		"way back":                 {words: matching(nft.NoWayBack)},
		"new":                      {words: matching(nft.CtNew, nft.CtOriginal), matches: true, drop: true},
		"reply":                    {words: matching(nft.CtReply)},
		"mark":                     {words: []nft.Word{nft.SetMark(0x111), nft.OrMark(0x20000)}, matches: true, change: func(p *Packet) { p.Mark = 0x20111 }},
		"mark of the connection":   {words: []nft.Word{nft.SetCtMark(1), nft.OrCtMark(2), nft.CtMark(2)}, matches: true, change: func(p *Packet) { p.Conn.Mark = 3 }},
		"accepted":                 {words: []nft.Word{nft.Accept, nft.CountedDrop}, matches: true},
		"a jump":                   {words: []nft.Word{nft.Jump(target)}, matches: true, drop: true},
		"tproxy":                   {words: []nft.Word{nft.IPv4.TProxy(15101)}, matches: true, change: func(p *Packet) { p.Socket = 15101 }},
		"tproxy, in a nat chain":   {words: []nft.Word{nft.IPv4.TProxy(15101)}, nat: true},
		"redirection":              {words: []nft.Word{nft.Redirect(15001)}, nat: true, matches: true, change: func(p *Packet) { p.DNAT(at("10.0.2.1:15001")) }},
		"translation":              {words: []nft.Word{nft.IPv4.DNAT(netip.MustParseAddr("192.0.2.9"))}, nat: true, matches: true, change: func(p *Packet) { p.DNAT(at("192.0.2.9:80")) }},
		"translation with port":    {words: []nft.Word{nft.DNATPort(at("127.0.0.1:53"))}, nat: true, matches: true, change: func(p *Packet) { p.DNAT(at("127.0.0.1:53")) }},
		"of the other family":      {words: []nft.Word{nft.IPv6.DNAT(netip.MustParseAddr("fd00::1"))}, nat: true, matches: true},
		"frozen":                   {words: []nft.Word{nft.IPv4.Freeze()}, nat: true, matches: true, change: func(p *Packet) { p.DNAT(p.Dst) }},
		"masquerade by a link":     {words: []nft.Word{nft.Masquerade}, nat: true, matches: true, change: func(p *Packet) { p.SNAT(netip.MustParseAddr("192.0.2.1")) }},
		"nothing behind a verdict": {words: []nft.Word{nft.Redirect(1), nft.SetMark(1)}, nat: true, matches: true, change: func(p *Packet) { p.DNAT(at("10.0.2.1:1")) }},
	} {
		packet := func() *Packet {
			p := New("br0", unix.IPPROTO_TCP, at("10.0.2.2:40000"), at("198.51.100.1:80"))
			p.Out, p.Conn = "eth0", &Conn{Src: p.Src, Dst: p.Dst, Presented: p.Src, Real: p.Dst}
			return &p
		}
		chain := &nft.Chain{Name: "c", Base: &nft.Base{Hook: nft.Prerouting, NAT: c.nat}}
		chain.Add("the rule", c.words...)
		got, want := packet(), packet()
		if c.change != nil {
			c.change(want)
		}
		matched, drop, err := Run(nft.New("t", chain, target), host, chain, got)
		if err != nil || drop != c.drop || (len(matched) > 0) != c.matches {
			t.Errorf("%s: matched %v, dropped %t, error %v; want a match %t, dropped %t", name, matched, drop, err, c.matches, c.drop)
		}
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(Conn{}), cmpopts.EquateComparable(netip.AddrPort{})); diff != "" {
			t.Errorf("%s: the packet (-want +got):\n%s", name, diff)
		}
		if name == "a jump" && !cmp.Equal(matched, []Match{{"c", "jump target", "the rule"}, {"target", "counter packets 0 bytes 0 drop", "in the target"}}) {
			t.Errorf("%s: matched %q", name, matched)
		}
	}
}

// TestConnection: the first nat chain decides, and a reply finds back.
func TestConnection(t *testing.T) {
	p := New("eth0", unix.IPPROTO_TCP, at("192.0.2.7:40000"), at("192.0.2.1:80"))
	p.Conn = &Conn{Src: p.Src, Dst: p.Dst, Presented: p.Src, Real: p.Dst}
	if !p.Undecided(nft.Prerouting) || !p.Undecided(nft.Postrouting) {
		t.Error("nobody has decided yet")
	}
	p.DNAT(at("10.0.2.2:80"))
	if p.Undecided(nft.Prerouting) || p.Undecided(nft.Output) || !p.Undecided(nft.Postrouting) {
		t.Error("the destination is decided, the source is not")
	}
	asked := p.Copy()
	asked.Decide(nft.Postrouting)
	p.SNAT(netip.MustParseAddr("10.0.2.1"))
	if asked.Undecided(nft.Postrouting) || p.Undecided(nft.Postrouting) {
		t.Error("the source is decided")
	}
	r := Packet{Reply: true, Src: p.Dst, Dst: p.Src, Conn: p.Conn}
	r.Restore(nft.Prerouting)
	if r.Src != at("10.0.2.2:80") || r.Dst != at("192.0.2.7:40000") {
		t.Errorf("the reply is %s -> %s behind prerouting", r.Src, r.Dst)
	}
	r.Restore(nft.Postrouting)
	if r.Src != at("192.0.2.1:80") || r.Dst != at("192.0.2.7:40000") {
		t.Errorf("the reply is %s -> %s", r.Src, r.Dst)
	}
	c := r.Copy()
	if r.Conn.Mark = 1; c.Conn.Mark != 0 {
		t.Error("a copy changes with its original")
	}
}

func TestNetwork(t *testing.T) {
	for addr, want := range map[string]string{
		"192.0.2.1": "lo", "192.0.2.9": "eth0", "10.0.2.2": "br0", "198.51.100.1": "eth0", "127.0.0.9": "lo", "::1": "lo", "::6": "lo", "2001:db8::1": "lo", "2001:db8::2": "eth0",
	} {
		if got := host.To(netip.MustParseAddr(addr)); got != want {
			t.Errorf("to %s by %s, want %s", addr, got, want)
		}
	}
	p := New("br0", unix.IPPROTO_TCP, at("10.0.2.2:1"), at("198.51.100.1:80"))
	if host.Delivers(&p) || host.Route(&p) != "eth0" {
		t.Error("a packet for somebody away is delivered here")
	}
	if p.Mark = 0x1fe; !host.Delivers(&p) || host.Route(&p) != "lo" {
		t.Error("the policy route does not deliver its marks here")
	}
}

// What the interpreter does not know is an error, not a rule that does not match.
func TestUnknown(t *testing.T) {
	for name, e := range map[string]expr.Any{
		"expression": &expr.Queue{},
		"meta key":   &expr.Meta{Key: expr.MetaKeyPRIORITY, Register: 1},
		"set meta":   &expr.Meta{Key: expr.MetaKeyPRIORITY, Register: 1, SourceRegister: true},
		"ct key":     &expr.Ct{Key: expr.CtKeySTATUS, Register: 1},
		"set ct":     &expr.Ct{Key: expr.CtKeyLABELS, Register: 1, SourceRegister: true},
		"payload":    &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1},
		"fib":        &expr.Fib{Register: 1, ResultOIFNAME: true, FlagDADDR: true},
		"comparison": &expr.Cmp{Op: expr.CmpOpLt, Register: 1},
		"bitwise":    &expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: make([]byte, 4)},
		"set":        &expr.Lookup{SourceRegister: 1, SetName: "nothing"},
		"verdict":    &expr.Verdict{Kind: expr.VerdictGoto, Chain: "x"},
		"chain":      &expr.Verdict{Kind: expr.VerdictJump, Chain: "x"},
		"nat":        &expr.Masq{}, // in a chain of type filter
		"snat":       &expr.NAT{Type: expr.NATTypeSourceNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1},
	} {
		p := New("eth0", unix.IPPROTO_TCP, netip.MustParseAddrPort("10.0.0.1:1"), netip.MustParseAddrPort("10.0.0.2:2"))
		p.Conn = &Conn{Dst: p.Dst}
		c := &nft.Chain{Name: "c", Base: &nft.Base{NAT: name == "snat"}}
		c.Add("-", nft.Word{Text: "some rule", Exprs: []expr.Any{e}})
		if _, _, err := Run(nft.New("t", c), Network{}, c, &p); err == nil || !strings.Contains(err.Error(), `chain c: rule "some rule": `) {
			t.Errorf("%s: error %v, want one that names the rule", name, err)
		}
	}
}

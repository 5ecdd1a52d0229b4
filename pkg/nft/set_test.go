package nft

import (
	"net/netip"
	"strings"
	"testing"
)

func prefixes(list ...string) (out []netip.Prefix) {
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// TestSets compares the sets' text for ranges that touch, overlap and end at the edges.
func TestSets(t *testing.T) {
	ports, most := PortsOf([]uint16{65535, 65534, 1, 80, 0}), PortsOf()
	ports.Add(81, 90)
	most.Add(1, 65535)
	tests := []struct {
		name string
		set  *Set
		want string
	}{
		{"overlap", PrefixSet("x", "-", prefixes("10.0.0.0/8", "10.1.0.0/16", "10.2.3.4/32")...), "10.0.0.0/8"},
		{"adjacent", PrefixSet("x", "-", prefixes("10.0.0.0/24", "10.0.1.0/24", "10.0.2.0/24")...), "10.0.0.0-10.0.2.255"},
		{"everything", PrefixSet("x", "-", prefixes("0.0.0.0/1", "128.0.0.0/1")...), "0.0.0.0/0"},
		{"last address", PrefixSet("x", "-", prefixes("255.255.255.255/32")...), "255.255.255.255"},
		{"IPv6", PrefixSet("x", "-", prefixes("::/0", "fd00::/8")...), "::/0"},
		{"ports", PortSet("x", "-", ports), "1, 80-90, 65534-65535"},
		{"ports without some", PortSet("x", "-", most.Without(PortsOf([]uint16{22, 65535}))), "1-21, 23-65534"},
		{"names", NameSet("x", "-", []string{"k6t-net1", "k6t-eth0", "k6t-net1"}), `"k6t-eth0", "k6t-net1"`},
	}
	for _, test := range tests {
		if got := test.set.String(); !strings.Contains(got, "elements = { "+test.want+" }\n") {
			t.Errorf("%s: got\n%s\nwant the elements %s", test.name, got, test.want)
		}
	}
	for name, s := range map[string]*Set{"no prefix": PrefixSet("x", "-"), "no port": PortSet("x", "-", PortsOf([]uint16{0}))} {
		if s.Len() != 0 {
			t.Errorf("%s: got %s, want an empty set", name, s)
		}
	}
}

func TestPair(t *testing.T) {
	p := AddrPair("x", "-", []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")})
	if s := p.Of(IPv4).String(); !strings.Contains(s, "set x4 {\n\t\ttype ipv4_addr\n") || !strings.Contains(s, "{ 10.0.0.1 }") {
		t.Errorf("IPv4: %s", s)
	}
	if s := p.Of(IPv6).String(); !strings.Contains(s, "set x6 {\n\t\ttype ipv6_addr\n") || !strings.Contains(s, "{ fd00::1 }") {
		t.Errorf("IPv6: %s", s)
	}
}

func TestContains(t *testing.T) {
	c := &Chain{Name: "c"}
	c.Add("-", TCPDport.In(PortSet("ports", "-", PortsOf([]uint16{80, 81, 82, 443}))), Accept)
	r := New("t", c)
	for port, want := range map[uint16]bool{79: false, 80: true, 82: true, 83: false, 443: true} {
		if got, known := r.Contains("ports", net16(port)); got != want || !known {
			t.Errorf("port %d: member %t of a known set %t, want %t", port, got, known, want)
		}
	}
	if _, known := r.Contains("nothing", net16(80)); known {
		t.Error("there is no set of that name")
	}
}

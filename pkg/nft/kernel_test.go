package nft

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/meshvirt/meshvirt/test/lab"
)

// checkKernel compares what the kernel holds with the ruleset's text: after Apply, after applying it again, and in
// another namespace after nft itself has read the text.
func checkKernel(t *testing.T, r Ruleset) lab.Netns {
	t.Helper()
	ours, other, want := lab.NewNetns(t), lab.NewNetns(t), lab.NormalTable(r.String())
	for _, when := range []string{"applied", "applied again"} {
		if err := r.Apply(nftables.WithNetNSFd(int(ours.Fd()))); err != nil {
			t.Fatalf("%s: %v", when, err)
		}
		if diff := cmp.Diff(want, ours.Table(t, r.name)); diff != "" {
			t.Fatalf("%s: nft lists other rules (-text +kernel):\n%s", when, diff)
		}
	}
	other.Run(t, r.String(), "nft", "-f", "-")
	if diff := cmp.Diff(want, other.Table(t, r.name)); diff != "" {
		t.Fatalf("read by nft: nft lists other rules (-text +kernel):\n%s", diff)
	}
	return ours
}

// TestWords has every word in a rule: its text is what nft makes of its expressions.
func TestWords(t *testing.T) {
	chain := func(name string, hook Hook, nat bool, priority int32) *Chain {
		return &Chain{Name: name, Base: &Base{Hook: hook, NAT: nat, Priority: priority}}
	}
	raw, mangle := chain("raw", Prerouting, false, -301), chain("mangle", Prerouting, false, -150)
	pre, out, post := chain("pre", Prerouting, true, -101), chain("out", Output, true, -101), chain("post", Postrouting, true, 99)
	target := &Chain{Name: "target"}

	ports, names := PortSet("ports", "-", PortsOf([]uint16{80, 443})), NameSet("names", "-", []string{"eth0", "lo"})
	for i, match := range []Word{
		IIFName.Is(Name("k6t-eth0")), IIFName.Not(Name(";{}#'$x@=<>&")), IIFName.In(names), IIFName.NotIn(names),
		TCPDport.Is(Port(80)), TCPDport.Not(Port(80)), TCPDport.In(ports), TCPDport.NotIn(ports), UDPDport.Is(Port(65535)), UDPSport.Is(Port(1)),
		Mark.Is(Bits(0x539)), Mark.Not(Bits(0)), MarkIs(0x111, 0xfff), MarkNot(0x539, 0xfff),
		FibDaddr.Is(Local), FibDaddr.Not(Unicast), FibDaddr.Is(Broadcast), FibDaddrIif.Is(Multicast), FibDaddrIif.Not(Local), NoWayBack,
		TCP, UDP, ICMP, ICMPv6, IPv4.Any, IPv6.Any,
		IPv4.Saddr.Is(Addr(netip.MustParseAddr("10.0.0.1"))), IPv6.Daddr.Not(Addr(netip.MustParseAddr("fd00::1"))),
		IPv4.Daddr.In(PrefixSet("v4", "-", prefixes("10.0.0.0/8", "255.255.255.255/32")...)), IPv6.Saddr.NotIn(PrefixSet("v6", "-", prefixes("fd00::/8", "ffff::/16")...)),
	} {
		raw.Add(fmt.Sprint("match ", i), match, CountedDrop)
	}
	raw.Add("several protocols", IPv4.Saddr.Is(Addr(netip.MustParseAddr("10.0.0.1"))), TCPDport.Is(Port(1)), Accept)
	raw.Add("zone", UDPDport.Is(Port(53)), SetZone(53))
	for i, words := range [][]Word{
		{CtNew, Accept}, {CtEstablished, Accept}, {CtRelated, Accept}, {CtInvalid, Accept}, {CtOriginal, Accept}, {CtReply, Accept}, {CtMark(0x20000), Accept},
		{SetMark(0x539)}, {SetCtMark(0)}, {OrMark(0x20000)}, {OrCtMark(0x10000)},
		{IPv4.Any, TCP, IPv4.TProxy(15101), Accept}, {IPv6.Any, TCP, IPv6.TProxy(15101), OrMark(1)}, {Jump(target)},
	} {
		mangle.Add(fmt.Sprint("rule ", i), words...)
	}
	for i, to := range []Word{
		Redirect(15001), IPv4.DNAT(netip.MustParseAddr("10.0.2.2")), IPv6.DNAT(netip.MustParseAddr("fd10:0:2::2")),
		DNATPort(netip.MustParseAddrPort("127.0.0.1:15053")), IPv4.Freeze(), IPv6.Freeze(),
	} {
		pre.Add(fmt.Sprint("to ", i), TCP, to)
	}
	out.Add("user", SKUID.Is(ID(1337)), OIFName.Is(Name("lo")), SKUID.Not(ID(math.MaxUint32-1)), Accept)
	out.Add("group", SKGID.Is(ID(0)), SKGID.Not(ID(1)), Accept)
	post.Add("masquerade", OIFName.In(names), Masquerade)
	checkKernel(t, New("words", raw, mangle, pre, out, post, target))
}

// TestPlaces: priorities are named where nft names them, and only there.
func TestPlaces(t *testing.T) {
	var chains []*Chain
	for _, hook := range []Hook{Prerouting, Forward, Output, Postrouting} {
		for _, priority := range []int32{math.MinInt32, -311, -310, -301, -300, -290, -289, -151, -150, -149, -111, -110, -101, -100, -99, -90, -89, -1, 0, 1, 10, 11, 50, 60, 61, 99, 100, 110, 111, math.MaxInt32} {
			for _, nat := range []bool{false, true} {
				if nat && (priority <= -200 || hook == Forward) {
					continue // the kernel has no such chains
				}
				c := &Chain{Name: fmt.Sprintf("c%d", len(chains)), Base: &Base{Hook: hook, NAT: nat, Priority: priority}}
				c.Add("-", Accept)
				chains = append(chains, c)
			}
		}
	}
	checkKernel(t, New("places", chains...))
}

func TestApplyWithoutPrivilege(t *testing.T) {
	err := lab.NewNetns(t).Do(0, func() error {
		none := [2]unix.CapUserData{}
		if err := unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0]); err != nil {
			return err
		}
		return New("t").Apply()
	})
	if !errors.Is(err, os.ErrPermission) || !strings.Contains(err.Error(), "NET_ADMIN") {
		t.Errorf("got %v, want an error that names NET_ADMIN", err)
	}
}

// TestApplyIsAtomic: a ruleset that the kernel refuses leaves the table as it was.
func TestApplyIsAtomic(t *testing.T) {
	good, bad := &Chain{Name: "good"}, &Chain{Name: "bad"}
	good.Add("-", CountedDrop)
	ns := checkKernel(t, New("t", good))
	before := ns.Table(t, "t")
	bad.Add("a jump to a chain that is not there", Jump(&Chain{Name: "nowhere"}))
	if err := New("t", bad).Apply(nftables.WithNetNSFd(int(ns.Fd()))); err == nil {
		t.Fatal("the kernel took a jump to a chain that is not there")
	}
	if diff := cmp.Diff(before, ns.Table(t, "t")); diff != "" {
		t.Errorf("the table changed (-before +after):\n%s", diff)
	}
}

// TestManyPrefixes loads more than one message of netlink can carry, in one transaction: 20,000 prefixes of each family
// that cannot be merged, 100.0.0.0/28, 100.0.32.0/28 and so on, fd00:0:0:1::/64, fd00:0:2000:1::/64 and so on.
func TestManyPrefixes(t *testing.T) {
	const n = 20_000
	var all []netip.Prefix
	for i := range n {
		hi, mid, lo := byte(i>>11), byte(i>>3), byte(i<<5)
		all = append(all,
			netip.PrefixFrom(netip.AddrFrom4([4]byte{100 + hi, mid, lo, 0}), 28),
			netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, hi, mid, lo, 0, 0, 0, 1}), 64))
	}
	p := PrefixPair("many", "-", all)
	c := &Chain{Name: "c"}
	c.Add("-", IPv4.Daddr.In(p.V4), Accept)
	c.Add("-", IPv6.Daddr.In(p.V6), Accept)
	r := New("t", c)
	if got := r.Elements(); got != 2*n {
		t.Fatalf("%d set members, want %d", got, 2*n)
	}
	ns := checkKernel(t, r)
	for addr, in := range map[string]bool{
		"99.255.255.255": false, "100.0.0.0": true, "100.0.0.15": true, "100.0.0.16": false, "100.0.31.255": false,
		"100.0.32.0": true, "109.195.224.15": true, "109.195.224.16": false,
		"fd00:0:0:1::": true, "fd00:0:0:1:ffff:ffff:ffff:ffff": true, "fd00:0:0:2::": false, "fd00::": false,
	} {
		set := map[bool]string{true: "many6", false: "many4"}[strings.Contains(addr, ":")]
		// nft get element asks the kernel's own look-up, and fails for what is not a member.
		cmd := fmt.Sprintf("if nft get element inet t %s '{ %s }' >/dev/null 2>&1; then echo in; fi", set, addr)
		if got := ns.Run(t, "", "sh", "-c", cmd) != ""; got != in {
			t.Errorf("%s in set %s: %t, want %t", addr, set, got, in)
		}
	}
}

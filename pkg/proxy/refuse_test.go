package proxy

import (
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// bindsTo stands in for the kernel: it knows these addresses as local.
func bindsTo(local ...netip.Addr) func(netip.Addr) error {
	return func(a netip.Addr) error {
		if slices.Contains(local, a) {
			return nil
		}
		return unix.EADDRNOTAVAIL
	}
}

func testPolicy() policy {
	return policy{
		guest4: guest4, guest6: guest6, own: [3]uint16{outPort, inPort, statPort},
		nameservers: []netip.Addr{netip.MustParseAddr("169.254.20.10"), netip.MustParseAddr("127.0.0.53"), pod4},
		bind:        bindsTo(pod4, gate4, pod6, gate6, netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()),
	}
}

func TestOutboundPolicy(t *testing.T) {
	for dst, want := range map[string]Reason{
		"192.0.2.10:443":                "",
		"10.96.0.1:443":                 "",
		"8.8.8.8:15201":                 "", // our port, but not ours
		"10.0.2.3:80":                   "",
		"169.253.255.255:80":            "",
		"[2001:db8::10]:443":            "",
		"[fd00:10:244:1::11]:80":        "",
		"[::ffff:192.0.2.10]:443":       "",
		"0.0.0.0:80":                    Unspecified,
		"[::]:80":                       Unspecified,
		"[::ffff:0.0.0.0]:80":           Unspecified,
		"127.0.0.1:15000":               Loopback,
		"127.255.255.254:80":            Loopback,
		"[::1]:15000":                   Loopback,
		"[::ffff:127.0.0.1]:15000":      Loopback,
		"169.254.169.254:80":            LinkLocal,
		"169.254.0.1:80":                LinkLocal,
		"169.254.20.10:53":              "", // a nameserver of the pod
		"[::ffff:169.254.20.10]:53":     "",
		"169.254.20.10:80":              LinkLocal,
		"169.254.169.254:53":            LinkLocal,
		"127.0.0.53:53":                 Loopback, // nameserver or not
		"10.244.1.10:53":                Local,
		"[fe80::1]:80":                  LinkLocal,
		"[febf:ffff::1]:80":             LinkLocal,
		"[::ffff:169.254.169.254]:80":   LinkLocal,
		"224.0.0.1:80":                  Multicast,
		"239.255.255.255:80":            Multicast,
		"[ff02::1]:80":                  Multicast,
		"255.255.255.255:80":            Broadcast,
		"10.0.2.2:22":                   Guest,
		"[fd10:0:2::2]:22":              Guest,
		"[::ffff:10.0.2.2]:22":          Guest,
		"10.0.2.1:15021":                Local,
		"10.244.1.10:80":                Local,
		"10.244.1.10:15201":             Local,
		"[fd00:10:244:1::10]:80":        Local,
		"[::ffff:10.244.1.10]:80":       Local,
		"[fd10:0:2::1]:15202":           Local,
		"[fd10:0:2::1:0]:15202":         "",
		"[::ffff:0:10.244.1.10]:15202":  "", // not a mapped address (SIIT)
		"[64:ff9b::192.0.2.10]:443":     "",
		"[2002:c000:20a::1]:443":        "",
		"[fec0::1]:80":                  "",
		"[::ffff:255.255.255.255]:80":   Broadcast,
		"[::ffff:224.0.0.1]:80":         Multicast,
		"[::ffff:169.253.255.255]:8080": "",
	} {
		if got := testPolicy().outbound(netip.MustParseAddrPort(dst)); got != want {
			t.Errorf("%s: reason %q, want %q", dst, got, want)
		}
	}
}

func TestInboundPolicy(t *testing.T) {
	type verdict struct {
		dial   string
		reason Reason
	}
	only4, only6 := testPolicy(), testPolicy()
	only4.guest6, only6.guest4 = netip.Addr{}, netip.Addr{}
	for _, c := range []struct {
		policy policy
		dst    string
		want   verdict
	}{
		{testPolicy(), "10.244.1.10:80", verdict{"10.0.2.2:80", ""}},
		{testPolicy(), "10.244.1.10:22", verdict{"10.0.2.2:22", ""}},
		{testPolicy(), "[fd00:10:244:1::10]:80", verdict{"[fd10:0:2::2]:80", ""}},
		{testPolicy(), "[::ffff:10.244.1.10]:80", verdict{"10.0.2.2:80", ""}},
		{testPolicy(), "127.0.0.1:80", verdict{"10.0.2.2:80", ""}},
		{testPolicy(), "10.244.1.10:15201", verdict{"", OwnPort}},
		{testPolicy(), "10.244.1.10:15202", verdict{"", OwnPort}},
		{testPolicy(), "[::1]:15202", verdict{"", OwnPort}},
		{testPolicy(), "10.244.1.10:15203", verdict{"", OwnPort}},
		{testPolicy(), "10.244.1.11:80", verdict{"", NotLocal}},
		{testPolicy(), "10.0.2.2:80", verdict{"", NotLocal}},
		{testPolicy(), "[2001:db8::10]:80", verdict{"", NotLocal}},
		{only4, "[fd00:10:244:1::10]:80", verdict{"", NoGuest}},
		{only4, "10.244.1.10:80", verdict{"10.0.2.2:80", ""}},
		{only6, "10.244.1.10:80", verdict{"", NoGuest}},
		{only6, "[::ffff:10.244.1.10]:80", verdict{"", NoGuest}},
	} {
		to, reason := c.policy.inbound(netip.MustParseAddrPort(c.dst))
		got := verdict{"", reason}
		if reason == "" {
			got.dial = to.String()
		}
		if got != c.want {
			t.Errorf("%s: %+v, want %+v", c.dst, got, c.want)
		}
	}
}

// The kernel itself says what is local, at the moment of the question.
func TestLocalProbe(t *testing.T) {
	p, err := newLocalProbe()
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	check := func(addr string, want error) {
		t.Helper()
		for range 2 { // a probe can be asked again
			if err := p.bind(netip.MustParseAddr(addr)); err != want {
				t.Errorf("bind to %s: %v, want %v", addr, err, want)
			}
		}
	}
	check("10.244.1.10", nil)
	check("10.244.1.11", nil) // secondary
	check("10.0.2.1", nil)
	check("127.0.0.1", nil)
	check("127.8.8.8", nil)       // no address, but a local route
	check("10.244.1.255", nil)    // broadcast of a subnet
	check("255.255.255.255", nil) // of all
	check("fd00:10:244:1::10", nil)
	check("::6", nil)
	check("10.244.1.12", unix.EADDRNOTAVAIL)
	check("192.0.2.10", unix.EADDRNOTAVAIL)
	check("2001:db8::10", unix.EADDRNOTAVAIL)

	late4, late6 := "198.51.100.4", "2001:db8:4::4"
	check(late4, unix.EADDRNOTAVAIL)
	check(late6, unix.EADDRNOTAVAIL)
	if err := pod.run("ip addr add 198.51.100.4/32 dev eth0; ip addr add 2001:db8:4::4/128 dev eth0 nodad"); err != nil {
		t.Fatal(err)
	}
	check(late4, nil)
	check(late6, nil)
	if err := pod.run("ip addr del 198.51.100.4/32 dev eth0; ip addr del 2001:db8:4::4/128 dev eth0"); err != nil {
		t.Fatal(err)
	}
	check(late4, unix.EADDRNOTAVAIL)
	check(late6, unix.EADDRNOTAVAIL)
}

// Where sockets may bind to any address, everything would look local: better to say so at once.
func TestLocalProbeNeedsStrictBind(t *testing.T) {
	for _, sysctl := range []string{"net.ipv4.ip_nonlocal_bind", "net.ipv6.ip_nonlocal_bind"} {
		file := "/proc/sys/" + strings.ReplaceAll(sysctl, ".", "/")
		if err := os.WriteFile(file, []byte("1"), 0); err != nil {
			t.Fatal(err)
		}
		p, err := newLocalProbe()
		if err == nil {
			p.close()
		}
		if err == nil || !strings.Contains(err.Error(), sysctl) {
			t.Errorf("error is %v, want one that names %s", err, sysctl)
		}
		if err := os.WriteFile(file, []byte("0"), 0); err != nil {
			t.Fatal(err)
		}
	}
}

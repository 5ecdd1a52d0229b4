package sockopt

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

func TestAddresses(t *testing.T) {
	for _, s := range []string{"192.0.2.1:80", "[2001:db8::1]:443", "[::]:1"} {
		want := netip.MustParseAddrPort(s)
		if got := AddrPort(Sockaddr(want)); got != want {
			t.Errorf("%s becomes %s", want, got)
		}
	}
	mapped := &unix.SockaddrInet6{Port: 80, Addr: netip.MustParseAddr("::ffff:192.0.2.1").As16()}
	if got, want := AddrPort(mapped), netip.MustParseAddrPort("192.0.2.1:80"); got != want {
		t.Errorf("an IPv4 peer of a dual-stack socket is %s, want %s", got, want)
	}
	if got := AddrPort(&unix.SockaddrUnix{Name: "/x"}); got.IsValid() {
		t.Errorf("a path becomes %s, want no address", got)
	}
}

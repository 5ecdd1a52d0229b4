package sockopt

import (
	"errors"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func socket(t *testing.T, family int) int {
	t.Helper()
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// Each function sets what its comment names, as the kernel tells it.
func TestSet(t *testing.T) {
	for _, c := range []struct {
		name          string
		set           func(fd int) error
		level, option int
		want          int
	}{
		{"NoDelay", NoDelay, unix.SOL_TCP, unix.TCP_NODELAY, 1},
		{"KeepAlive", func(fd int) error { return KeepAlive(fd, 7*time.Second) }, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
		{"KeepAlive idle", func(fd int) error { return KeepAlive(fd, 7*time.Second) }, unix.SOL_TCP, unix.TCP_KEEPIDLE, 7},
		{"UserTimeout", func(fd int) error { return UserTimeout(fd, 1500*time.Millisecond) }, unix.SOL_TCP, unix.TCP_USER_TIMEOUT, 1500},
		{"ReuseAddr", ReuseAddr, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1},
		{"ReusePort", ReusePort, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1},
		{"BindNoPort", BindNoPort, unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1},
	} {
		for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
			fd := socket(t, family)
			if before, err := unix.GetsockoptInt(fd, c.level, c.option); before == c.want || err != nil {
				t.Errorf("%s: %d (%v) before, want another", c.name, before, err)
			}
			if err := c.set(fd); err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
			if got, err := unix.GetsockoptInt(fd, c.level, c.option); got != c.want || err != nil {
				t.Errorf("%s: %d (%v), want %d", c.name, got, err, c.want)
			}
		}
	}
	fd := socket(t, unix.AF_INET6)
	unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_V6ONLY, 1)
	if err := DualStack(fd); err != nil {
		t.Error(err)
	}
	if only, err := unix.GetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_V6ONLY); only != 0 || err != nil {
		t.Errorf("IPV6_V6ONLY is %d (%v), want 0", only, err)
	}
}

// The errors that the comments promise.
func TestErrors(t *testing.T) {
	bound := socket(t, unix.AF_INET6)
	if err := unix.Bind(bound, &unix.SockaddrInet6{}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		err  error
		want unix.Errno
	}{
		{"TCP_KEEPIDLE", KeepAlive(socket(t, unix.AF_INET), 0), unix.EINVAL},
		{"TCP_KEEPIDLE", KeepAlive(socket(t, unix.AF_INET), 32768*time.Second), unix.EINVAL},
		{"TCP_USER_TIMEOUT", UserTimeout(socket(t, unix.AF_INET), -time.Second), unix.EINVAL},
		{"IPV6_V6ONLY", DualStack(bound), unix.EINVAL},
		{"TCP_NODELAY", NoDelay(-1), unix.EBADF},
		{"SO_LINGER", ResetOnClose(-1, true), unix.EBADF},
		{"SO_ERROR", Error(-1), unix.EBADF},
		{"IP_TRANSPARENT", Transparent(-1), unix.EBADF},
		{"IP_PKTINFO", PacketInfo(-1, false), unix.EBADF},
		{"IPV6_RECVPKTINFO", PacketInfo(-1, true), unix.EBADF},
		{"getsockname", second(LocalAddr(-1)), unix.EBADF},
	} {
		if !errors.Is(c.err, c.want) || !strings.Contains(c.err.Error(), c.name) {
			t.Errorf("%s: %v, want %v and the option's name", c.name, c.err, c.want)
		}
	}
}

func second[T any](_ T, err error) error { return err }

// A transparent socket may be bound where no other may, in both families; and only some may make one.
func TestTransparent(t *testing.T) {
	runtime.LockOSThread() // and never unlocked: the thread ends with the test
	for family, foreign := range map[int]netip.AddrPort{
		unix.AF_INET:  netip.MustParseAddrPort("192.0.2.1:80"),
		unix.AF_INET6: netip.MustParseAddrPort("[2001:db8::1]:80"),
	} {
		var sa unix.Sockaddr = &unix.SockaddrInet6{Port: 80, Addr: foreign.Addr().As16()}
		if foreign.Addr().Is4() {
			sa = &unix.SockaddrInet4{Port: 80, Addr: foreign.Addr().As4()}
		}
		fd := socket(t, family)
		if err := unix.Bind(fd, sa); !errors.Is(err, unix.EADDRNOTAVAIL) {
			t.Errorf("bind to %s: %v, want EADDRNOTAVAIL", foreign, err)
		}
		if err := errors.Join(Transparent(fd), unix.Bind(fd, sa)); err != nil {
			t.Errorf("bind a transparent socket to %s: %v", foreign, err)
		}
		if got, err := LocalAddr(fd); got != foreign || err != nil {
			t.Errorf("address %s (%v), want %s", got, err, foreign)
		}
	}
	for name, c := range map[string]struct {
		capability int
		want       error
	}{"NET_RAW": {unix.CAP_NET_RAW, nil}, "none": {-1, unix.EPERM}} {
		done := make(chan error)
		go func() {
			runtime.LockOSThread()
			var caps [2]unix.CapUserData
			if c.capability >= 0 {
				caps[0].Effective, caps[0].Permitted = 1<<c.capability, 1<<c.capability
			}
			fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM, 0)
			if err == nil {
				err = unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &caps[0])
			}
			if err == nil {
				err = Transparent(fd)
			}
			unix.Close(fd)
			done <- err
		}()
		if err := <-done; !errors.Is(err, c.want) {
			t.Errorf("with capability %s: %v, want %v", name, err, c.want)
		}
	}
}

// pair connects two sockets over the loopback device of a network namespace that has no nftables, and
// so no conntrack.
func pair(t *testing.T, family int, addr unix.Sockaddr) (client, server int) {
	t.Helper()
	ln := socket(t, family)
	if err := errors.Join(unix.Bind(ln, addr), unix.Listen(ln, 1)); err != nil {
		t.Fatal(err)
	}
	to, err := unix.Getsockname(ln)
	if err != nil {
		t.Fatal(err)
	}
	client = socket(t, family)
	if err := unix.Connect(client, to); err != nil {
		t.Fatal(err)
	}
	if server, _, err = unix.Accept(ln); err != nil {
		t.Fatal(err)
	}
	return client, server
}

func TestConnection(t *testing.T) {
	runtime.LockOSThread() // and never unlocked: the thread ends with the test
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal("want root: ", err)
	}
	up(t)
	for _, c := range []struct {
		v6     bool
		family int
		addr   unix.Sockaddr
	}{
		{false, unix.AF_INET, &unix.SockaddrInet4{Addr: netip.MustParseAddr("127.0.0.1").As4()}},
		{true, unix.AF_INET6, &unix.SockaddrInet6{Addr: netip.IPv6Loopback().As16()}},
	} {
		client, server := pair(t, c.family, c.addr)
		if dst, err := OriginalDst(server, c.v6); !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOPROTOOPT) {
			t.Errorf("v6 %t: original destination %s (%v) without conntrack, want an error", c.v6, dst, err)
		}
		if err := Error(client); err != nil {
			t.Errorf("v6 %t: a good socket has error %v", c.v6, err)
		}
		if err := ResetOnClose(server, true); err != nil {
			t.Error(err)
		}
		unix.Close(server)
		if err := Error(client); err != unix.ECONNRESET {
			t.Errorf("v6 %t: after the reset the error is %v, want %v", c.v6, err, unix.ECONNRESET)
		}
		if err := Error(client); err != nil {
			t.Errorf("v6 %t: asked again, the error is %v, want none", c.v6, err)
		}
	}
}

// up brings the loopback device up.
func up(t *testing.T) {
	t.Helper()
	fd := socket(t, unix.AF_INET)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		t.Fatal(err)
	}
	lo.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo); err != nil {
		t.Fatal(err)
	}
}

// A socket that takes no port can be bound again and again, and tells which addresses are local.
func TestBindNoPort(t *testing.T) {
	fd := socket(t, unix.AF_INET)
	if err := BindNoPort(fd); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		for addr, want := range map[string]error{"127.0.0.1": nil, "127.1.2.3": nil, "192.0.0.8": unix.EADDRNOTAVAIL} {
			if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: netip.MustParseAddr(addr).As4()}); err != want {
				t.Errorf("bind to %s: %v, want %v", addr, err, want)
			}
		}
	}
}

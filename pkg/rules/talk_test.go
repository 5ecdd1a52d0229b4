package rules

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meshvirt/meshvirt/pkg/sockopt"
	testlab "github.com/meshvirt/meshvirt/test/lab"
)

// serve answers every connection or datagram to port on the hosts with what answer says about its
// sender and, for TCP, the destination that it had before it was redirected.
func (l *lab) serve(ns testlab.Netns, uid int, network string, hosts []string, port string, answer func(from net.Addr, orig netip.AddrPort) string) {
	l.Helper()
	for _, host := range hosts {
		family := "4"
		if strings.Contains(host, ":") {
			family = "6"
		}
		l.serveOne(ns, uid, network+family, net.JoinHostPort(host, port), answer)
	}
}

func (l *lab) serveOne(ns testlab.Netns, uid int, network, addr string, answer func(from net.Addr, orig netip.AddrPort) string) {
	l.Helper()
	var listener net.Listener
	var packets net.PacketConn
	err := ns.Do(uid, func() (err error) {
		if strings.HasPrefix(network, "tcp") {
			listener, err = listenTransparent(network, addr)
		} else {
			packets, err = net.ListenPacket(network, addr)
		}
		return err
	})
	if err != nil {
		l.Fatal(err)
	}
	if packets != nil {
		l.Cleanup(func() { packets.Close() })
		go func() {
			buf := make([]byte, 2048)
			for {
				_, from, err := packets.ReadFrom(buf)
				if err != nil {
					return // closed: the test is over
				}
				packets.WriteTo([]byte(answer(from, netip.AddrPort{})), from)
			}
		}()
		return
	}
	l.Cleanup(func() { listener.Close() })
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return // closed: the test is over
			}
			go func() {
				defer c.Close()
				io.WriteString(c, answer(c.RemoteAddr(), originalDst(c.(*net.TCPConn))))
			}()
		}
	}()
}

// listenTransparent opens a listener that may be given connections by TPROXY.
func listenTransparent(network, addr string) (net.Listener, error) {
	c := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) (err error) {
		return errors.Join(raw.Control(func(fd uintptr) { err = sockopt.Transparent(int(fd)) }), err)
	}}
	return c.Listen(context.Background(), network, addr)
}

// ask connects from a namespace as uid, from an address if one is given, and gives the answer.
func (l *lab) ask(ns testlab.Netns, uid int, network, from, addr string, patience time.Duration) string {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var d net.Dialer
	if from != "" {
		d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(from)}
	}
	var c net.Conn
	err := ns.Do(uid, func() (err error) {
		if network == "ping" {
			c, err = dialPing(ctx, addr)
		} else {
			c, err = d.DialContext(ctx, network, addr)
		}
		return err
	})
	if err != nil {
		return failure(err)
	}
	defer c.Close()
	deadline, _ := ctx.Deadline()
	c.SetDeadline(deadline)
	if network == "ping" {
		return ping(c)
	}
	if network == "udp" {
		if _, err := c.Write([]byte("?")); err != nil {
			return failure(err)
		}
		buf := make([]byte, 2048)
		n, err := c.Read(buf)
		if err != nil {
			return failure(err)
		}
		return string(buf[:n])
	}
	b, err := io.ReadAll(c)
	if err != nil {
		return failure(err)
	}
	return string(b)
}

// dialPing opens a raw socket for ICMP or ICMPv6.
func dialPing(ctx context.Context, addr string) (net.Conn, error) {
	var d net.Dialer
	if strings.Contains(addr, ":") {
		return d.DialContext(ctx, "ip6:ipv6-icmp", addr)
	}
	return d.DialContext(ctx, "ip4:icmp", addr)
}

// ping sends an echo request and waits for the reply.
func ping(c net.Conn) string {
	request, reply := []byte{8, 0, 0xf7, 0xff, 0, 0, 0, 0}, byte(0) // the checksum of v4 is ours to write
	if strings.Contains(c.RemoteAddr().String(), ":") {
		request, reply = []byte{128, 0, 0, 0, 0, 0, 0, 0}, 129
	}
	if _, err := c.Write(request); err != nil {
		return failure(err)
	}
	for buf := make([]byte, 2048); ; {
		n, err := c.Read(buf)
		if err != nil {
			return failure(err)
		}
		b := buf[:n]
		if reply == 0 && n > 0 { // IPv4 raw sockets give the header as well, its length in words
			b = b[min(n, int(b[0]&15)*4):]
		}
		if len(b) > 0 && b[0] == reply {
			return "pong"
		}
	}
}

func failure(err error) string {
	var timeout net.Error
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refused"
	case errors.As(err, &timeout) && timeout.Timeout():
		return noAnswer
	case errors.Is(err, syscall.EINVAL):
		return "no route"
	}
	return err.Error()
}

func hostOf(a net.Addr) string {
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return err.Error()
	}
	return ap.Addr().Unmap().WithZone("").String()
}

// originalDst is where the client of c wanted to go, or its local address if nothing redirected it.
func originalDst(c *net.TCPConn) netip.AddrPort {
	const soOriginalDst = 80 // SO_ORIGINAL_DST and IP6T_SO_ORIGINAL_DST
	local := c.LocalAddr().(*net.TCPAddr).AddrPort()
	orig := netip.AddrPortFrom(local.Addr().Unmap(), local.Port())
	raw, err := c.SyscallConn()
	if err != nil {
		return orig
	}
	raw.Control(func(fd uintptr) {
		// Both calls are made for another option of the same size; what counts is the sockaddr.
		if orig.Addr().Is4() {
			if m, err := unix.GetsockoptIPv6Mreq(int(fd), unix.SOL_IP, soOriginalDst); err == nil {
				a := m.Multiaddr
				orig = netip.AddrPortFrom(netip.AddrFrom4([4]byte(a[4:8])), uint16(a[2])<<8|uint16(a[3]))
			}
		} else if m, err := unix.GetsockoptIPv6MTUInfo(int(fd), unix.SOL_IPV6, soOriginalDst); err == nil {
			p := m.Addr.Port
			orig = netip.AddrPortFrom(netip.AddrFrom16(m.Addr.Addr), p<<8|p>>8)
		}
	})
	return orig
}

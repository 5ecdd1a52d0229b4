package proxy

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meshvirt/meshvirt/pkg/sockopt"
)

// keepAliveIdle is how long a connection may be silent before the relay asks whether its ends are
// still there. With the kernel's nine probes of 75 s each, an end that is gone is given up after some
// 21 minutes: long enough for a virtual machine that is paused or migrated.
const keepAliveIdle = 10 * time.Minute

// accept takes the connections that wait, up to acceptBatch, and never fails: what is wrong with one
// connection ends only that one, and a lack of resources is waited out.
func (l *loop) accept(ln *listener) {
	ln.paused = false
	for range acceptBatch {
		if !ln.waiting {
			return
		}
		fd, sa, err := unix.Accept4(ln.fd, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		switch err {
		case nil:
			l.admit(ln.dir, fd, sa)
		case unix.EAGAIN:
			ln.waiting = false
		case unix.EINTR, unix.ECONNABORTED, unix.EPROTO:
			l.proxy.metrics.acceptErrors.Inc()
		default: // EMFILE, ENFILE, ENOBUFS, ENOMEM, and whatever else must not make the loop spin
			l.proxy.metrics.acceptErrors.Inc()
			l.warn("accept paused", "direction", ln.dir.String(), "error", err)
			ln.paused = true
			return
		}
	}
}

// admit makes a flow of an accepted socket, or refuses it.
func (l *loop) admit(dir direction, client int, peer unix.Sockaddr) {
	from := sockopt.AddrPort(peer)
	to, reason := l.target(dir, client, from)
	if reason != "" {
		l.proxy.metrics.of[dir].refused[reason].Inc()
		l.warn("connection refused", "direction", dir.String(), "client", from, "destination", to, "reason", reason)
		unix.Close(client) // with RST
		return
	}
	server, err := dial(to, l.proxy.cfg.DialTimeout)
	if err != nil {
		l.dialFailed(dir, from, to, err)
		unix.Close(client) // with RST
		return
	}
	m := l.proxy.metrics.of[dir]
	f := &flow{dir: dir, from: from, to: to, dialling: true}
	f.client = end{flow: f, peer: &f.server, fd: client, moved: m.fromClient}
	f.server = end{flow: f, peer: &f.client, fd: server, moved: m.fromServer}
	l.own(&f.client)
	l.own(&f.server)
	l.flows++
	m.opened.Inc()
	m.open.Inc()

	// A server nearby has answered within connect, and a client that speaks first has spoken: most
	// often the first bytes can go at once. Registering the sockets then tells what happened so far.
	l.pump(&f.client)
	if f.dead {
		return
	}
	if err := errors.Join(l.watch(client, anyEvent), l.watch(server, anyEvent)); err != nil {
		l.fail(f, err)
	}
}

// own enters e into the table of ends.
func (l *loop) own(e *end) {
	if missing := e.fd + 1 - len(l.ends); missing > 0 {
		l.ends = append(l.ends, make([]*end, missing)...)
	}
	l.ends[e.fd] = e
}

// target finds what to dial for an accepted connection, or why not to.
func (l *loop) target(dir direction, client int, from netip.AddrPort) (netip.AddrPort, Reason) {
	dst, err := l.originalDst(dir, client, from)
	switch {
	case err != nil:
		return dst, Untracked
	case l.flows >= l.limit:
		return dst, Full
	case dir == inbound:
		return l.proxy.policy.Load().inbound(dst)
	default:
		return dst, l.proxy.policy.Load().outbound(dst)
	}
}

// originalDst is where the client wanted to go.
func (l *loop) originalDst(dir direction, client int, from netip.AddrPort) (netip.AddrPort, error) {
	if dir == outbound && l.proxy.cfg.Transparent {
		return sockopt.LocalAddr(client)
	}
	return sockopt.OriginalDst(client, from.Addr().Is6())
}

// dialReasons are the errors of failed dials by the reason that metrics and log give, a closed set;
// any other error is dialOther.
var dialReasons = map[unix.Errno]string{
	unix.ECONNREFUSED:  "refused",
	unix.ETIMEDOUT:     "timeout",
	unix.EHOSTUNREACH:  "unreachable",
	unix.ENETUNREACH:   "unreachable",
	unix.EHOSTDOWN:     "unreachable",
	unix.ENETDOWN:      "unreachable",
	unix.EACCES:        "denied", // by a packet filter or a route
	unix.EPERM:         "denied",
	unix.EADDRNOTAVAIL: "exhausted", // no port, descriptor or memory left for another socket
	unix.EMFILE:        "exhausted",
	unix.ENFILE:        "exhausted",
	unix.ENOBUFS:       "exhausted",
	unix.ENOMEM:        "exhausted",
}

const dialOther = "other"

func (l *loop) dialFailed(dir direction, from, to netip.AddrPort, err error) {
	reason := dialOther
	var errno unix.Errno
	if errors.As(err, &errno) && dialReasons[errno] != "" {
		reason = dialReasons[errno]
	}
	l.proxy.metrics.of[dir].dialFailures[reason].Inc()
	l.warn("dial failed", "direction", dir.String(), "client", from, "destination", to, "reason", reason, "error", err)
}

// dial starts a connection and does not wait for it. The socket is not bound: the mesh's redirection
// and the kernel's routes choose the source.
func dial(to netip.AddrPort, timeout time.Duration) (fd int, err error) {
	family := unix.AF_INET6
	if to.Addr().Is4() {
		family = unix.AF_INET
	}
	fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	err = errors.Join(sockopt.NoDelay(fd), sockopt.KeepAlive(fd, keepAliveIdle), sockopt.ResetOnClose(fd, true))
	if timeout > 0 {
		err = errors.Join(err, sockopt.UserTimeout(fd, timeout))
	}
	if err == nil {
		err = os.NewSyscallError("connect", unix.Connect(fd, sockopt.Sockaddr(to)))
	}
	if err != nil && !errors.Is(err, unix.EINPROGRESS) {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// listen opens a listener on every address, of both families where the kernel has both. Options that
// accepted sockets inherit are set here, once. shared lets other loops listen on the same port,
// and transparent takes what TPROXY brings.
func listen(port uint16, shared, transparent bool) (fd int, err error) {
	any := netip.IPv6Unspecified()
	fd, err = unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err == unix.EAFNOSUPPORT { // a kernel without IPv6
		any = netip.IPv4Unspecified()
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	}
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	err = errors.Join(sockopt.ReuseAddr(fd), sockopt.NoDelay(fd), sockopt.KeepAlive(fd, keepAliveIdle), sockopt.ResetOnClose(fd, true))
	if any.Is6() {
		err = errors.Join(err, sockopt.DualStack(fd))
	}
	if transparent {
		e := sockopt.Transparent(fd)
		if errors.Is(e, unix.EPERM) {
			e = fmt.Errorf("%w: want the capability NET_RAW", e)
		}
		err = errors.Join(err, e)
	}
	if shared {
		err = errors.Join(err, sockopt.ReusePort(fd))
	}
	if err == nil {
		err = os.NewSyscallError("bind", unix.Bind(fd, sockopt.Sockaddr(netip.AddrPortFrom(any, port))))
	}
	if err == nil {
		err = os.NewSyscallError("listen", unix.Listen(fd, 4096)) // the kernel takes net.core.somaxconn if that is less
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

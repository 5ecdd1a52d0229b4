package dns

import (
	"container/list"
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meshvirt/meshvirt/pkg/sockopt"
)

// batch bounds the datagrams that are taken from one socket before others are looked at.
const batch = 64

// A key names a client: from where it asks, and by which listener.
type key struct {
	from     netip.AddrPort
	listener int
}

// A client is an address and port of the guest that asks one server.
type client struct {
	key
	fd      int           // connected to the server
	to      unix.Sockaddr // the guest, for answers
	oob     []byte        // the control message that gives answers their source
	waiting int           // queries without an answer
	last    time.Time     // of the last datagram, in either direction
	place   *list.Element // in Forwarder.silent
}

// query takes what waits at a listener to its server.
func (f *Forwarder) query(index int) {
	l := f.listeners[index]
	for range batch {
		n, oobn, _, sa, err := unix.Recvmsg(l.fd, f.buf, f.oob, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return // EAGAIN; there is nothing else to expect
		}
		from, oob := sockopt.AddrPort(sa), f.oob[:oobn]
		if !f.fromGuest(from.Addr(), oob) {
			f.metrics.dropped[Stranger].Inc()
			continue
		}
		f.metrics.queries.Inc()
		c, err := f.client(key{from, index}, l.server)
		if err == nil {
			c.to, c.oob, c.last = sa, append(c.oob[:0], oob...), time.Now()
			_, err = unix.Write(c.fd, f.buf[:n])
			if err == unix.ECONNREFUSED { // about an earlier query: the error is gone, and this one not sent
				f.metrics.dropped[Refused].Add(float64(f.answered(c, c.waiting)))
				_, err = unix.Write(c.fd, f.buf[:n])
			}
		}
		if err != nil {
			f.metrics.dropped[reasonOf(err)].Inc()
			continue
		}
		c.waiting++
		f.waiting++
		f.silent.MoveToBack(c.place)
	}
}

// answer takes what a client's server has sent to the guest.
func (f *Forwarder) answer(c *client) {
	for range batch {
		n, err := unix.Read(c.fd, f.buf)
		switch err {
		case nil:
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			return
		default: // an ICMP error; most often nobody listens at the server
			f.metrics.dropped[Refused].Add(float64(max(f.answered(c, c.waiting), 1)))
			return
		}
		c.last = time.Now()
		if f.answered(c, 1); c.waiting == 0 {
			// Who has its answers makes place first: most resolvers use a port for one query.
			f.silent.MoveToFront(c.place)
		}
		if _, err := unix.SendmsgN(f.listeners[c.listener].fd, f.buf[:n], c.oob, c.to, 0); err != nil {
			f.metrics.dropped[reasonOf(err)].Inc()
			continue
		}
		f.metrics.answers.Inc()
	}
}

// answered counts down what c waits for by n at most, and gives by how many.
func (f *Forwarder) answered(c *client, n int) int {
	n = min(n, c.waiting)
	c.waiting -= n
	f.waiting -= n
	return n
}

// client finds a client, or makes it.
func (f *Forwarder) client(k key, server netip.AddrPort) (*client, error) {
	if c := f.clients[k]; c != nil {
		return c, nil
	}
	if len(f.clients) >= f.cfg.Clients {
		f.forget(f.silent.Front().Value.(*client), Evicted)
	}
	fd, err := socket(server.Addr())
	if err != nil {
		return nil, err
	}
	err = os.NewSyscallError("connect", unix.Connect(fd, sockopt.Sockaddr(server)))
	if err == nil {
		err = f.watch(fd)
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	c := &client{key: k, fd: fd}
	c.place = f.silent.PushBack(c)
	f.clients[k], f.byFD[fd] = c, c
	f.metrics.clients.Inc()
	return c, nil
}

// forget closes a client. What it still waits for is dropped for that reason.
func (f *Forwarder) forget(c *client, why Reason) {
	unix.Close(c.fd)
	delete(f.clients, c.key)
	delete(f.byFD, c.fd)
	f.silent.Remove(c.place)
	f.metrics.dropped[why].Add(float64(f.answered(c, c.waiting)))
	f.metrics.clients.Dec()
}

// forgetIdle forgets the clients of which nothing was heard for long.
func (f *Forwarder) forgetIdle(now time.Time) {
	for _, c := range f.byFD {
		if now.Sub(c.last) >= f.cfg.Idle {
			f.forget(c, Unanswered)
		}
	}
}

// reasonOf says why a datagram could not be sent.
func reasonOf(err error) Reason {
	for _, full := range []error{unix.EAGAIN, unix.ENOBUFS, unix.ENOMEM, unix.EMFILE, unix.ENFILE, unix.ENOSPC} {
		if errors.Is(err, full) {
			return Exhausted
		}
	}
	return Unreachable
}

func native32(b []byte) uint32 { return binary.NativeEndian.Uint32(b) }

package proxy

import (
	"net/netip"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"github.com/meshvirt/meshvirt/pkg/sockopt"
)

const (
	// stepsPerTurn bounds what one direction of one flow moves before others are looked at: two
	// pipes full. Longer turns raise the worst latency of everybody else in proportion.
	stepsPerTurn = 2

	// pipeSize is the largest that users without privilege may ask for (fs.pipe-max-size), and the
	// fewest calls per byte.
	pipeSize = 1 << 20
	// maxPipes bounds a loop's pipes, and idlePipes those kept for the next burst. The kernel counts
	// them per user and node (fs.pipe-user-pages-soft allows 64 of this size): the relays of all
	// virtual machines on a node share them.
	maxPipes, idlePipes = 8, 2
	// pipeBackoff is the number of requests answered by copying after the kernel refused a pipe.
	pipeBackoff = 1000

	spliceFlags = unix.SPLICE_F_MOVE | unix.SPLICE_F_NONBLOCK
)

// A flow is one relayed connection: from a client that was redirected here to the server that was
// dialled for it.
type flow struct {
	client, server end
	dir            direction
	from, to       netip.AddrPort // the client, and what was dialled
	dialling       bool           // the server's first event is still to come
	broken         bool           // one end has failed: the other must not see a FIN
	dead           bool
}

// An end is one socket of a flow, and what is on its way from there to the peer.
type end struct {
	flow  *flow
	peer  *end
	moved prometheus.Counter // bytes from here to the peer
	rest  []byte             // read, not yet written; nil almost always
	pipe  *pipe              // held while data comes in bulk
	fd    int

	fin    bool // the kernel has told of a FIN or a hang-up: there is an end of file to read
	eof    bool // it has been read
	shut   bool // a FIN was sent from here, because the peer is at its eof
	queued bool // in loop.turns
}

// waits reports whether something that came from e waits for its peer to take it.
func (e *end) waits() bool {
	return e.rest != nil || e.pipe != nil || e.eof && !e.peer.shut
}

// pump moves what e has to its peer, for one turn. It needs no EINTR: no call here ever sleeps.
func (l *loop) pump(e *end) {
	if e.flow.dead {
		return
	}
	for range stepsPerTurn {
		more, err := l.step(e)
		if err != nil {
			l.fail(e.flow, err)
			return
		}
		if !more {
			if e.eof && e.peer.shut && e.shut {
				l.finish(e.flow)
			}
			return
		}
	}
	e.queued = true
	l.turns = append(l.turns, e)
}

// step makes one move from e to its peer. It reports false once the kernel owes us an event before
// the next move: something to read, or room to write.
func (l *loop) step(e *end) (more bool, err error) {
	switch {
	case e.pipe != nil:
		return l.splice(e)
	case e.rest != nil:
		n, err := write(e.peer.fd, e.rest)
		if e.rest = e.rest[n:]; len(e.rest) == 0 {
			e.rest = nil
		}
		e.moved.Add(float64(n))
		return e.rest == nil, err
	case e.eof:
		// Not before the connection stands: shutdown would abandon the handshake.
		if !e.peer.shut && !e.flow.dialling && !e.flow.broken {
			e.peer.shut = true
			return false, unix.Shutdown(e.peer.fd, unix.SHUT_WR)
		}
		return false, nil
	}
	n, err := unix.Read(e.fd, l.buf)
	if err == unix.EAGAIN {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if n == 0 {
		e.eof = true
		return true, nil
	}
	m, err := write(e.peer.fd, l.buf[:n])
	if err != nil {
		return false, err
	}
	e.moved.Add(float64(m))
	if m < n {
		e.rest = append([]byte(nil), l.buf[m:n]...)
		return false, nil
	}
	if n == len(l.buf) {
		e.pipe = l.pipes.take() // nil: copying goes on
		return true, nil
	}
	// A short read empties the socket, and spares the read that would say so. But a FIN that came
	// along has no event of its own.
	return e.fin, nil
}

// write is write(2) that moves nothing instead of blocking, also while the socket still connects.
func write(fd int, b []byte) (int, error) {
	n, err := unix.Write(fd, b)
	if err == unix.EAGAIN {
		return 0, nil
	}
	return max(n, 0), err
}

// splice is step through a pipe: the pages move, the bytes do not.
func (l *loop) splice(e *end) (more bool, err error) {
	p := e.pipe
	if p.n == 0 {
		n, err := unix.Splice(e.fd, nil, p.w, nil, pipeSize, spliceFlags)
		if err != nil && err != unix.EAGAIN {
			return false, err
		}
		if n <= 0 { // dry, or at the end
			e.pipe = nil
			l.pipes.put(p)
			e.eof = err == nil
			return e.eof, nil
		}
		p.n = int(n)
	}
	n, err := unix.Splice(p.r, nil, e.peer.fd, nil, p.n, spliceFlags)
	if err == unix.EAGAIN {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	p.n -= int(n)
	e.moved.Add(float64(n))
	return true, nil
}

// connected notes the first good news of the server.
func (l *loop) connected(f *flow) {
	f.dialling = false
	if l.proxy.cfg.DialTimeout > 0 {
		_ = sockopt.UserTimeout(f.server.fd, 0) // it was meant for the handshake
	}
}

// broken ends a flow whose end e has failed. What came in before is still delivered, as far as the
// peer takes it at once: an answer followed by a reset is an answer.
func (l *loop) broken(e *end) {
	e.flow.broken = true
	if l.pump(e); e.flow.dead {
		return
	}
	err := sockopt.Error(e.fd)
	if err == nil {
		err = unix.ECONNRESET // some call took it already
	}
	l.fail(e.flow, err)
}

// fail ends a flow because of an error of one end, and lets the other see it as RST.
func (l *loop) fail(f *flow, err error) {
	if f.dialling && err != unix.ECONNRESET && err != unix.EPIPE { // those need a connection
		l.dialFailed(f.dir, f.from, f.to, err)
	} else {
		l.proxy.metrics.of[f.dir].resets.Inc()
	}
	l.reset(f)
}

// finish closes both ends once each has sent its FIN and seen the other's: what the kernel has not sent yet
// must not be lost any more.
func (l *loop) finish(f *flow) {
	_ = sockopt.ResetOnClose(f.client.fd, false)
	_ = sockopt.ResetOnClose(f.server.fd, false)
	l.reset(f)
}

// reset closes both ends and forgets them. They see RST: that is what every socket of a flow is set to until the
// flow has ended in good order, so that it holds also for whatever ends the process, such as SIGKILL for want of
// memory. A FIN in the middle of a stream would look like its end.
func (l *loop) reset(f *flow) {
	for _, e := range []*end{&f.client, &f.server} {
		unix.Close(e.fd)
		l.ends[e.fd] = nil
		e.rest = nil
		if e.pipe != nil {
			l.pipes.put(e.pipe)
			e.pipe = nil
		}
	}
	f.dead = true
	l.flows--
	l.proxy.metrics.of[f.dir].open.Dec()
}

// pipes are those of one loop. The zero value has none.
type pipes struct {
	idle    []*pipe
	made    int // idle ones and those in use
	backoff int // requests still to be denied
}

// A pipe holds n bytes.
type pipe struct{ r, w, n int }

// take gives an empty pipe of pipeSize, or nil if there is none to be had.
func (p *pipes) take() *pipe {
	if last := len(p.idle) - 1; last >= 0 {
		x := p.idle[last]
		p.idle = p.idle[:last]
		return x
	}
	if p.backoff > 0 {
		p.backoff--
		return nil
	}
	var fds [2]int
	if p.made == maxPipes || unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK) != nil {
		return nil
	}
	p.made++
	x := &pipe{r: fds[0], w: fds[1]}
	if _, err := unix.FcntlInt(uintptr(x.w), unix.F_SETPIPE_SZ, pipeSize); err != nil {
		// EPERM: the user's share is used up. A pipe of the default size is no faster than copying.
		p.drop(x)
		p.backoff = pipeBackoff
		return nil
	}
	return x
}

// put takes a pipe back. One that still holds data is of no use to anybody.
func (p *pipes) put(x *pipe) {
	if x.n > 0 || len(p.idle) == idlePipes {
		p.drop(x)
		return
	}
	p.idle = append(p.idle, x)
}

func (p *pipes) drop(x *pipe) {
	unix.Close(x.r)
	unix.Close(x.w)
	p.made--
}

func (p *pipes) close() {
	for _, x := range p.idle {
		p.drop(x)
	}
	p.idle = nil
}

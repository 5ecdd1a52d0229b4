package proxy

import (
	"context"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// copySize is one read. A read that fills it is the mark of bulk data, which splice moves best.
	copySize = 64 << 10
	// acceptBatch bounds the connections accepted between two looks at the open ones.
	acceptBatch = 64
	// acceptPause is the wait, in milliseconds, after accept failed for want of descriptors or memory.
	acceptPause = 100
	// logLines is the number of lines about failed flows that a loop may log per second.
	logLines = 20
	// loopFiles are the descriptors that a loop may hold apart from its flows'.
	loopFiles = 4 + 2*maxPipes

	// anyEvent is edge-triggered: a socket is registered once, and tells only what is new.
	anyEvent = unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLET
)

// A loop relays the connections that it accepted. Everything it has belongs to the goroutine in run,
// but for calls, wake and ended, by which others reach it.
type loop struct {
	proxy *Proxy
	limit int // of flows

	epoll     int
	listeners []*listener
	ends      []*end // by descriptor
	flows     int
	turns     []*end // wait for another turn, first come, first served
	buf       []byte
	pipes     pipes

	draining bool

	second        int64 // to which the next two belong
	lines, unsaid int   // lines logged, lines left out since

	calls  chan func()
	wake   *os.File // an eventfd: a File, because it may be closed while others write to it
	wakeFD int
	ended  chan struct{} // closed by run
}

type listener struct {
	dir     direction
	fd      int
	waiting bool // connections may wait for accept
	paused  bool // accept failed for want of resources
}

// newLoop opens a loop's descriptors.
func newLoop(p *Proxy, limit int) (_ *loop, err error) {
	l := &loop{
		proxy: p, limit: limit, epoll: -1, buf: make([]byte, copySize),
		calls: make(chan func(), 8), ended: make(chan struct{}),
	}
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	if l.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	if l.wakeFD, err = unix.Eventfd(0, unix.EFD_CLOEXEC); err != nil {
		return nil, os.NewSyscallError("eventfd", err)
	}
	l.wake = os.NewFile(uintptr(l.wakeFD), "eventfd")
	if err = l.watch(l.wakeFD, unix.EPOLLIN); err != nil {
		return nil, err
	}
	ports := [...]uint16{outbound: p.cfg.OutboundPort, inbound: p.cfg.InboundPort}
	for dir, port := range ports {
		fd, err := listen(port, p.cfg.Loops > 1, p.cfg.Transparent && direction(dir) == outbound)
		if err != nil {
			return nil, fmt.Errorf("listen for %s connections on port %d: %w", direction(dir), port, err)
		}
		l.listeners = append(l.listeners, &listener{dir: direction(dir), fd: fd})
		if err := l.watch(fd, unix.EPOLLIN|unix.EPOLLET); err != nil {
			return nil, err
		}
	}
	return l, nil
}

// run handles events until the loop is drained.
func (l *loop) run() error {
	defer close(l.ended)
	events := make([]unix.EpollEvent, 256)
	for !l.draining || l.flows > 0 {
		n, err := unix.EpollWait(l.epoll, events, l.timeout())
		if err != nil && err != unix.EINTR {
			return os.NewSyscallError("epoll_wait", err)
		}
		l.proxy.metrics.wakeups.Inc()
		for i := range max(n, 0) {
			l.handle(&events[i])
		}
		// Only now may new sockets appear: one with the number of a socket that closed above would
		// meet the events of the old.
		for _, ln := range l.listeners {
			l.accept(ln)
		}
		// One turn of bulk data, then a look at who else has something.
		if len(l.turns) > 0 {
			e := l.turns[0]
			l.turns = l.turns[1:]
			e.queued = false
			l.pump(e)
		}
	}
	return nil
}

// timeout is how long, in milliseconds, the loop may sleep if nothing happens.
func (l *loop) timeout() int {
	if len(l.turns) > 0 {
		return 0
	}
	timeout := -1
	for _, ln := range l.listeners {
		if ln.paused {
			timeout = acceptPause
		} else if ln.waiting {
			return 0
		}
	}
	return timeout
}

func (l *loop) handle(ev *unix.EpollEvent) {
	if int(ev.Fd) == l.wakeFD {
		l.called()
		return
	}
	for _, ln := range l.listeners {
		if int(ev.Fd) == ln.fd {
			ln.waiting = true
			return
		}
	}
	if int(ev.Fd) >= len(l.ends) || l.ends[ev.Fd] == nil {
		return // closed by an earlier event of this batch
	}
	e := l.ends[ev.Fd]
	// The error itself may be gone: splice swallows one that comes after its first byte. But both
	// directions of a socket are over only if it failed, or if we ended one of them.
	if ev.Events&unix.EPOLLERR != 0 || ev.Events&unix.EPOLLHUP != 0 && !e.shut {
		l.broken(e)
		return
	}
	if e.flow.dialling && e == &e.flow.server {
		l.connected(e.flow)
	}
	if ev.Events&(unix.EPOLLRDHUP|unix.EPOLLHUP) != 0 {
		e.fin = true
	}
	// Every event of a socket carries EPOLLOUT, so the other direction is looked at only if something
	// of it waits for this socket.
	if ev.Events&^unix.EPOLLOUT != 0 && !e.queued {
		l.pump(e)
	}
	if ev.Events&unix.EPOLLOUT != 0 && e.peer.waits() && !e.peer.queued {
		l.pump(e.peer)
	}
}

// post runs f in the loop, soon. It does nothing if the loop has ended or ctx is done.
func (l *loop) post(ctx context.Context, f func()) {
	select {
	case l.calls <- f:
		_, _ = l.wake.Write([]byte{7: 1}) // any number but zero, in either byte order; fails only if closed
	case <-l.ended:
	case <-ctx.Done():
	}
}

// called runs what was posted.
func (l *loop) called() {
	var count [8]byte
	_, _ = unix.Read(l.wakeFD, count[:]) // resets it; there is nothing to be done about an error
	for {
		select {
		case f := <-l.calls:
			f()
		default:
			return
		}
	}
}

// drain stops accepting. Clients that the kernel had not handed over yet see RST.
func (l *loop) drain() {
	l.draining = true
	for _, ln := range l.listeners {
		unix.Close(ln.fd)
	}
	l.listeners = nil
}

// cut resets every flow.
func (l *loop) cut() {
	if l.flows > 0 {
		l.proxy.cfg.Log.Warn("cut connections that were still open", "connections", l.flows)
	}
	for _, e := range l.ends {
		if e != nil {
			l.reset(e.flow)
		}
	}
}

// close releases what the loop holds. It may be called after run only, or instead of it.
func (l *loop) close() {
	l.drain()
	l.cut()
	l.pipes.close()
	if l.epoll >= 0 {
		unix.Close(l.epoll)
	}
	if l.wake != nil {
		l.wake.Close()
	}
}

// watch registers a descriptor for good: closing it is what removes it.
func (l *loop) watch(fd int, events uint32) error {
	ev := unix.EpollEvent{Events: events, Fd: int32(fd)}
	return os.NewSyscallError("epoll_ctl", unix.EpollCtl(l.epoll, unix.EPOLL_CTL_ADD, fd, &ev))
}

// warn logs one failed flow, unless this second had enough lines. The next line tells how many were
// left out.
func (l *loop) warn(msg string, args ...any) {
	if now := time.Now().Unix(); now != l.second {
		l.second, l.lines = now, 0
	}
	if l.lines == logLines {
		l.unsaid++
		return
	}
	if l.unsaid > 0 {
		args = append(args, "leftOut", l.unsaid)
	}
	l.lines, l.unsaid = l.lines+1, 0
	l.proxy.cfg.Log.Warn(msg, args...)
}

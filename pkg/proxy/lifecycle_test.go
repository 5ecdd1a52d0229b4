package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http/httptest"
	"os"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meshvirt/meshvirt/test/lab"
)

func TestDrain(t *testing.T) {
	r := start(t, Config{Drain: time.Minute})
	p := paths()[0]
	port := p.server.listen(t, lab.Echo)
	c := p.dial(t, port)
	ping(t, c)
	if code, body := r.get("/readyz"); code != 200 {
		t.Errorf("before: /readyz is %d %q, want 200", code, body)
	}

	r.drain()
	lab.Await(t, "the listeners closed", func() bool {
		again, err := p.client.dial(p.source, c.RemoteAddr().(*net.TCPAddr).AddrPort())
		if err == nil {
			again.Close()
		}
		return err != nil
	})
	if _, err := p.client.dial(p.source, c.RemoteAddr().(*net.TCPAddr).AddrPort()); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("a new client got %v, want %v", err, unix.ECONNREFUSED)
	}
	if code, body := r.get("/readyz"); code != 503 || !strings.Contains(body, "draining") {
		t.Errorf("meanwhile: /readyz is %d %q, want 503 and why", code, body)
	}
	if code, body := r.get("/livez"); code != 200 {
		t.Errorf("meanwhile: /livez is %d %q, want 200", code, body)
	}
	select {
	case err := <-r.ended:
		t.Fatalf("run returned %v while a connection was open", err)
	default:
	}

	ping(t, c) // it may finish
	c.CloseWrite()
	if rest, err := io.ReadAll(c); len(rest) > 0 || err != nil {
		t.Errorf("the open connection ended with %q and %v, want its FIN", rest, err)
	}
	if err := r.wait(); err != nil {
		t.Errorf("run: %v", err)
	}
	if code, body := r.get("/livez"); code != 503 {
		t.Errorf("afterwards: /livez is %d %q, want 503", code, body)
	}
}

// Who is not done when the time is over is cut, with RST.
func TestDrainCuts(t *testing.T) {
	for _, drain := range []time.Duration{0, 300 * time.Millisecond} {
		t.Run(drain.String(), func(t *testing.T) {
			r := start(t, Config{Drain: drain})
			p := paths()[3]
			c := p.dial(t, p.server.listen(t, lab.Echo))
			ping(t, c)
			r.drain()
			wantReset(t, c)
			if err := r.wait(); err != nil {
				t.Errorf("run: %v", err)
			}
		})
	}
}

func TestStatusBeforeRun(t *testing.T) {
	p, err := New(Config{OutboundPort: outPort, InboundPort: inPort, StatusPort: statPort})
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	r := &relay{Proxy: p, t: t}
	if code, body := r.get("/readyz"); code != 503 || !strings.Contains(body, "starting") {
		t.Errorf("/readyz is %d %q, want 503 and why", code, body)
	}
}

// A loop that hangs is not alive.
func TestLivezNeedsTheLoop(t *testing.T) {
	r := start(t, Config{})
	if code, body := r.get("/livez"); code != 200 {
		t.Errorf("/livez is %d %q, want 200", code, body)
	}
	hang := make(chan bool)
	r.loops[0].post(t.Context(), func() { <-hang })
	defer close(hang)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond) // a prober's patience
	defer cancel()
	w := httptest.NewRecorder()
	r.Handler().ServeHTTP(w, httptest.NewRequestWithContext(ctx, "GET", "/livez", nil))
	if w.Code != 503 || !strings.Contains(w.Body.String(), "event loop 0 does not answer") {
		t.Errorf("/livez of a loop that hangs is %d %q, want 503", w.Code, w.Body)
	}
}

func TestPortInUse(t *testing.T) {
	start(t, Config{})
	before := lab.Descriptors(t, os.Getpid())
	for range 3 {
		_, err := New(Config{OutboundPort: outPort, InboundPort: inPort, StatusPort: statPort})
		if err == nil || !strings.Contains(err.Error(), "15201") || !strings.Contains(err.Error(), "address already in use") {
			t.Errorf("error is %v, want one that names the port", err)
		}
	}
	awaitDescriptors(t, before)
}

// Two loops share the ports.
func TestLoops(t *testing.T) {
	r := start(t, Config{Loops: 2})
	p := paths()[0]
	port := p.server.listen(t, lab.Echo)
	for range 32 {
		ping(t, p.dial(t, port))
	}
	if n := r.metric(`connections_open{direction="outbound"}`); n != 32 {
		t.Errorf("%d connections are open, want 32", n)
	}
	answer := make(chan int)
	for i, l := range r.loops {
		l.post(t.Context(), func() { answer <- l.flows })
		if n := <-answer; n == 0 || n == 32 {
			t.Errorf("loop %d has %d of 32 connections, want some", i, n)
		}
	}
}

// /metrics names every series from the start.
func TestMetricNames(t *testing.T) {
	r := start(t, Config{})
	_, body := r.get("/metrics")
	for _, dir := range []string{"outbound", "inbound"} {
		for _, reason := range Reasons {
			if s := fmt.Sprintf("meshvirt_proxy_refused_total{direction=%q,reason=%q} 0\n", dir, reason); !strings.Contains(body, s) {
				t.Errorf("no %s", s)
			}
		}
		for _, reason := range []string{"refused", "timeout", "unreachable", "denied", "exhausted", "other"} {
			if s := fmt.Sprintf("meshvirt_proxy_dial_failures_total{direction=%q,reason=%q} 0\n", dir, reason); !strings.Contains(body, s) {
				t.Errorf("no %s", s)
			}
		}
	}
	for _, series := range []string{"accept_errors_total", "loop_wakeups_total", "loop_lag_seconds"} {
		r.metric(series)
	}
	for line := range strings.Lines(body) {
		if !regexp.MustCompile(`^(# (HELP|TYPE) )?meshvirt_proxy_[a-z_]+[ {]`).MatchString(line) {
			t.Errorf("stray line %q", line)
		}
	}
}

// Flows that ended, in whatever way, leave nothing behind but two idle pipes at most.
func TestNoLeak(t *testing.T) {
	filesBefore, goroutinesBefore := lab.Descriptors(t, os.Getpid()), runtime.NumGoroutine()
	t.Run("flows", func(t *testing.T) {
		r := start(t, Config{Drain: time.Minute})
		running := lab.Descriptors(t, os.Getpid())
		for i := range 300 {
			p := paths()[i%4]
			var port uint16
			t.Run("one", func(t *testing.T) {
				port = p.server.listen(t, lab.Echo)
				c := p.dial(t, port)
				switch i % 5 {
				case 0: // clean
					go func() { io.Copy(c, noise(i, 300<<10)); c.CloseWrite() }()
					io.Copy(io.Discard, c)
				case 1: // reset in the middle of bulk
					go io.Copy(c, noise(i, 4<<20))
					io.CopyN(io.Discard, c, 500<<10)
					c.SetLinger(0)
				case 2: // closed without a byte
				case 3: // refused
					p.wantRefused(t, 1)
				case 4: // closed with bytes unread
					io.Copy(c, noise(i, 100<<10))
				}
				c.Close()
			})
		}
		lab.Await(t, "all flows end", func() bool {
			return r.metric(`connections_open{direction="outbound"}`)+r.metric(`connections_open{direction="inbound"}`) == 0
		})
		awaitDescriptors(t, running+2*idlePipes)
		if l := r.loops[0]; l.pipes.made > idlePipes || len(l.turns) > 0 {
			t.Errorf("the loop has %d pipes and %d turns, want at most %d and none", l.pipes.made, len(l.turns), idlePipes)
		}
	})
	awaitDescriptors(t, filesBefore)
	lab.Await(t, "the goroutines end", func() bool { return runtime.NumGoroutine() <= goroutinesBefore })
}

// Both sockets of a flow have what keeps it alive and quick, and nothing of the dial's time-out.
func TestSocketOptions(t *testing.T) {
	eachPath(t, func(t *testing.T, r *relay, p path) {
		c := p.dial(t, p.server.listen(t, lab.Echo))
		ping(t, c)
		l := r.loops[0]
		sockets := make(chan int, 2)
		l.post(t.Context(), func() {
			for _, e := range l.ends {
				if e != nil {
					sockets <- e.fd
				}
			}
			close(sockets)
		})
		for fd := range sockets {
			for _, o := range []struct {
				name                string
				level, option, want int
			}{
				{"SO_KEEPALIVE", unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
				{"TCP_KEEPIDLE", unix.SOL_TCP, unix.TCP_KEEPIDLE, 600},
				{"TCP_NODELAY", unix.SOL_TCP, unix.TCP_NODELAY, 1},
				{"TCP_USER_TIMEOUT", unix.SOL_TCP, unix.TCP_USER_TIMEOUT, 0},
			} {
				if got, err := unix.GetsockoptInt(fd, o.level, o.option); got != o.want || err != nil {
					t.Errorf("%s is %d (%v), want %d", o.name, got, err, o.want)
				}
			}
			// Whatever ends the process resets its connections (cmd/proxy's TestBinaryKilled).
			if l, err := unix.GetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER); err != nil || *l != (unix.Linger{Onoff: 1}) {
				t.Errorf("SO_LINGER is %+v (%v), want on and zero seconds", l, err)
			}
		}
	})
}

// An idle connection costs two descriptors, no goroutine and less than a kilobyte.
func TestIdleConnectionIsCheap(t *testing.T) {
	start(t, Config{})
	const flows = 500
	p := paths()[0]
	var conns []*net.TCPConn
	port := p.server.listen(t, lab.Echo)
	before, goroutines, descriptors := heap(), runtime.NumGoroutine(), lab.Descriptors(t, os.Getpid())
	for range flows {
		conns = append(conns, p.dial(t, port))
		ping(t, conns[len(conns)-1])
	}
	// Of each connection, the test itself has a goroutine and two descriptors.
	if n := runtime.NumGoroutine() - goroutines; n > flows {
		t.Errorf("%d goroutines for %d connections, want the server's only", n, flows)
	}
	if n := lab.Descriptors(t, os.Getpid()) - descriptors; n > 4*flows {
		t.Errorf("%d descriptors for %d connections, want 4 each", n, flows)
	}
	t.Logf("heap per connection, client and server included: %d bytes", (heap()-before)/flows)
}

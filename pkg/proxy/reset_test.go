package proxy

import (
	"errors"
	"fmt"
	"io"
	"net"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/meshvirt/meshvirt/pkg/sockopt"
	"github.com/meshvirt/meshvirt/test/lab"
)

func TestReset(t *testing.T) {
	eachPath(t, func(t *testing.T, r *relay, p path) {
		t.Run("by client", func(t *testing.T) {
			ended := make(chan error, 1)
			port := p.server.listen(t, func(c *net.TCPConn) {
				c.Write([]byte("x"))
				_, err := c.Read(make([]byte, 1))
				ended <- err
			})
			c := p.dial(t, port)
			io.ReadFull(c, make([]byte, 1))
			c.SetLinger(0)
			c.Close()
			if err := <-ended; !errors.Is(err, unix.ECONNRESET) {
				t.Errorf("the server saw %v, want %v", err, unix.ECONNRESET)
			}
		})
		t.Run("by server", func(t *testing.T) {
			port := p.server.listen(t, func(c *net.TCPConn) {
				c.Read(make([]byte, 1))
				c.SetLinger(0)
			})
			c := p.dial(t, port)
			c.Write([]byte("x"))
			wantReset(t, c)
		})
		t.Run("after an answer", func(t *testing.T) {
			port := p.server.listen(t, func(c *net.TCPConn) {
				c.Read(make([]byte, 1)) // not all of it: closing then resets
				io.WriteString(c, "413 too large")
			})
			c := p.dial(t, port)
			c.Write(make([]byte, 100))
			answer := make([]byte, len("413 too large"))
			if _, err := io.ReadFull(c, answer); err != nil || string(answer) != "413 too large" {
				t.Errorf("the client read %q and %v, want the answer", answer, err)
			}
			wantReset(t, c)
		})
		if n := r.metric(fmt.Sprintf("resets_total{direction=%q}", p.dir)); n != 3 {
			t.Errorf("%d resets counted, want 3", n)
		}
	})
}

// The kernel tells of a reset once, and splice may have swallowed it. What is left looks much like the
// end of the stream, and must not become one.
func TestResetWithoutError(t *testing.T) {
	eachPath(t, func(t *testing.T, r *relay, p path) {
		ended := make(chan error, 1)
		port := p.server.listen(t, func(c *net.TCPConn) {
			ping(t, c)
			_, err := c.Read(make([]byte, 1))
			ended <- err
		})
		c := p.dial(t, port)
		io.CopyN(c, c, 4)
		l := r.loops[0]
		var taken error
		held, release := make(chan bool), make(chan bool)
		l.post(t.Context(), func() {
			close(held)
			<-release // until then the loop sees nothing
			for _, e := range l.ends {
				if e != nil && e == &e.flow.client {
					taken = sockopt.Error(e.fd)
				}
			}
		})
		<-held
		c.SetLinger(0)
		c.Close()
		close(release)
		if err := <-ended; !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("the server saw %v, want %v", err, unix.ECONNRESET)
		}
		if err := r.ping(t.Context()); err != nil || taken != unix.ECONNRESET {
			t.Errorf("the test took %v (%v), want %v", taken, err, unix.ECONNRESET)
		}
	})
}

// A connection may get the descriptors of one that ended in the same round of the loop, for which
// events are still to come. They are not its own.
func TestStaleEvent(t *testing.T) {
	r := start(t, Config{})
	p := paths()[0]
	reset := make(chan bool)
	old := p.dial(t, p.server.listen(t, func(c *net.TCPConn) {
		ping(t, c)
		<-reset
		c.SetLinger(0)
		c.Close()
		reset <- true
	}))
	io.CopyN(old, old, 4)
	port := p.server.listen(t, lab.Echo)

	held, release := make(chan bool), make(chan bool)
	r.loops[0].post(t.Context(), func() {
		close(held)
		<-release
	})
	<-held // what follows is one batch of events, in this order
	old.SetLinger(0)
	old.Close()
	c := p.dial(t, port)
	reset <- true
	<-reset
	close(release)
	ping(t, c)
}

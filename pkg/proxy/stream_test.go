package proxy

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/meshvirt/meshvirt/test/lab"
)

// A script is one random conversation. Both sides send at once, in random pieces, and read in random
// pieces into buffers of random size; a side sends its FIN when it is done. In some, one side resets
// in the middle: the other must then see a true beginning of the stream and a reset, or all of it.
type script struct {
	seed     int
	path     path
	up, down int // bytes
	// resetBy is who breaks off, after reading and writing that many bytes.
	resetBy     string
	resetAfter  int
	clientFirst bool // the server sends nothing before the client's FIN
	small       bool // tiny receive buffers, so that everybody blocks
}

func newScript(seed int) script {
	r := rand.New(rand.NewPCG(uint64(seed), 1))
	size := func() int { return r.IntN(1 << r.IntN(22)) } // 0 to 2 MB, many small ones
	s := script{seed: seed, path: paths()[r.IntN(4)], up: size(), down: size()}
	s.clientFirst, s.small = r.IntN(4) == 0, s.up+s.down < 100<<10 && r.IntN(2) == 0
	if n := min(s.up, s.down); n > 0 && r.IntN(5) == 0 && !s.clientFirst {
		s.resetBy, s.resetAfter = []string{"client", "server"}[r.IntN(2)], r.IntN(n)
	}
	return s
}

func (s script) String() string {
	return fmt.Sprintf("stream %d (%s, %d up, %d down, reset by %q after %d, client first: %t, small: %t)",
		s.seed, s.path.name, s.up, s.down, s.resetBy, s.resetAfter, s.clientFirst, s.small)
}

// play is one side's part. It returns what is wrong with it.
func (s script) play(c *net.TCPConn, me string) error {
	r := rand.New(rand.NewPCG(uint64(s.seed), uint64(len(me)+int(me[0]))))
	send, receive := noise(s.seed, s.up), noise(s.seed+1<<12, s.down)
	if me == "server" {
		send, receive = noise(s.seed+1<<12, s.down), noise(s.seed, s.up)
	}
	if s.small {
		c.SetReadBuffer(4 << 10)
	}
	if s.resetBy == me {
		send, receive = io.LimitReader(send, int64(s.resetAfter)), io.LimitReader(receive, int64(s.resetAfter))
	}
	chunks := r.Uint64()
	write := func() error {
		r := rand.New(rand.NewPCG(chunks, 0))
		for {
			b := make([]byte, 1+r.IntN(1<<r.IntN(19)))
			n, err := io.ReadFull(send, b)
			if _, err := c.Write(b[:n]); err != nil {
				return fmt.Errorf("write: %w", err)
			}
			if err != nil {
				break
			}
		}
		if s.resetBy == me {
			return nil
		}
		return c.CloseWrite()
	}
	read := func() error {
		want, total := make([]byte, 1<<18), 0
		for {
			b := make([]byte, 1+r.IntN(1<<r.IntN(18)))
			var in io.Reader = c
			if s.resetBy == me {
				in = io.LimitReader(c, int64(s.resetAfter-total))
			}
			n, err := in.Read(b)
			m, _ := io.ReadFull(receive, want[:n])
			if m < n || !bytes.Equal(b[:n], want[:n]) {
				return fmt.Errorf("wrong bytes within %d of %d", n, total)
			}
			total += n
			if err == io.EOF {
				break
			}
			if err != nil {
				return fmt.Errorf("read, after %d bytes: %w", total, err)
			}
		}
		if n, _ := io.Copy(io.Discard, receive); n > 0 {
			return fmt.Errorf("a clean end after %d bytes, %d are missing", total, n)
		}
		return nil
	}
	if s.clientFirst && me == "server" {
		if err := read(); err != nil {
			return err
		}
		return write()
	}
	var both sync.WaitGroup
	var wrote error
	both.Go(func() { wrote = write() })
	err := read()
	both.Wait()
	if s.resetBy == me {
		c.SetLinger(0)
		c.Close()
		return nil
	}
	if err == nil || lab.IsReset(wrote) { // the kernel tells of a reset once, to whoever asks first
		err = wrote
	}
	return err
}

func TestStreams(t *testing.T) {
	r := start(t, Config{})
	const streams, atOnce = 240, 12
	var wait sync.WaitGroup
	slots := make(chan bool, atOnce)
	resets := 0
	var mu sync.Mutex
	for seed := range streams {
		s := newScript(seed)
		serverSaw := make(chan error, 1)
		port := s.path.server.listen(t, func(c *net.TCPConn) { serverSaw <- s.play(c, "server") })
		slots <- true
		wait.Go(func() {
			defer func() { <-slots }()
			c, err := s.path.client.dial(s.path.source, netip.AddrPortFrom(s.path.target, port))
			if err == nil {
				c.SetDeadline(time.Now().Add(time.Minute))
				err = s.play(c, "client")
				c.Close()
			}
			for who, err := range map[string]error{"client": err, "server": <-serverSaw} {
				broken := s.resetBy != "" && s.resetBy != who
				if broken && lab.IsReset(err) {
					mu.Lock()
					resets++
					mu.Unlock()
				} else if err != nil || broken && s.up+s.down > 2*s.resetAfter {
					t.Errorf("%s: the %s saw %v", s, who, err)
				}
			}
		})
	}
	wait.Wait()
	if resets < 10 {
		t.Errorf("%d streams were reset, want more to have tested something", resets)
	}
	lab.Await(t, "all flows end", func() bool {
		return r.metric(`connections_open{direction="outbound"}`)+r.metric(`connections_open{direction="inbound"}`) == 0
	})
	if n := r.metric(`connections_total{direction="outbound"}`) + r.metric(`connections_total{direction="inbound"}`); n != streams {
		t.Errorf("the relay saw %d streams, want %d", n, streams)
	}
}

package proxy

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/meshvirt/meshvirt/test/lab"
)

// Several megabytes go both ways at once, and the server sees the address that the design promises.
func TestRelay(t *testing.T) {
	eachPath(t, func(t *testing.T, r *relay, p path) {
		const up, down = 9<<20 + 7, 7<<20 + 3
		peer := make(chan netip.Addr, 1)
		got := make(chan string, 1)
		port := p.server.listen(t, func(c *net.TCPConn) {
			peer <- c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
			var both sync.WaitGroup
			both.Go(func() { got <- sum(t, c) })
			io.Copy(c, noise(2, down))
			c.CloseWrite()
			both.Wait()
		})
		c := p.dial(t, port)
		var both sync.WaitGroup
		both.Go(func() {
			io.Copy(c, noise(1, up))
			c.CloseWrite()
		})
		if diff := cmp.Diff(sum(t, noise(2, down)), sum(t, c)); diff != "" {
			t.Errorf("what the client got (-want +got):\n%s", diff)
		}
		both.Wait()
		if diff := cmp.Diff(sum(t, noise(1, up)), <-got); diff != "" {
			t.Errorf("what the server got (-want +got):\n%s", diff)
		}
		if a := <-peer; a != p.seen {
			t.Errorf("the server saw the client as %s, want %s", a, p.seen)
		}
		lab.Await(t, "the connection closed", func() bool {
			return r.metric(fmt.Sprintf("connections_open{direction=%q}", p.dir)) == 0
		})
		for series, want := range map[string]int{
			fmt.Sprintf("connections_total{direction=%q}", p.dir):             1,
			fmt.Sprintf("connections_total{direction=%q}", 1-p.dir):           0,
			fmt.Sprintf("bytes_total{direction=%q,from=\"client\"}", p.dir):   up,
			fmt.Sprintf("bytes_total{direction=%q,from=\"server\"}", p.dir):   down,
			fmt.Sprintf("bytes_total{direction=%q,from=\"client\"}", 1-p.dir): 0,
			fmt.Sprintf("resets_total{direction=%q}", p.dir):                  0,
		} {
			if got := r.metric(series); got != want {
				t.Errorf("%s is %d, want %d", series, got, want)
			}
		}
	})
}

// What TestRelay proves, it proves because of the redirect: without it the relay sees nothing.
func TestRelayWithoutRules(t *testing.T) {
	r := start(t, Config{})
	if err := pod.nft("delete table inet meshvirt"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := pod.nft(rules); err != nil {
			t.Error(err)
		}
	})
	for _, p := range paths() {
		port := p.server.listen(t, lab.Echo)
		err := p.client.do(func() error {
			d := net.Dialer{Timeout: 300 * time.Millisecond}
			if p.source.IsValid() {
				d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(p.source, 0))
			}
			_, err := d.Dial("tcp", netip.AddrPortFrom(p.target, port).String())
			return err
		})
		if err == nil {
			t.Errorf("%s: connected without the rules", p.name)
		}
		if n := r.metric(fmt.Sprintf("connections_total{direction=%q}", p.dir)); n != 0 {
			t.Errorf("%s: the relay saw %d connections, want none", p.name, n)
		}
	}
}

func TestHalfClose(t *testing.T) {
	const size = 5 << 20
	eachPath(t, func(t *testing.T, _ *relay, p path) {
		t.Run("client first", func(t *testing.T) {
			port := p.server.listen(t, func(c *net.TCPConn) {
				request, err := io.ReadAll(c) // to the client's FIN
				if string(request) != "request" || err != nil {
					t.Errorf("the server read %q and %v", request, err)
				}
				io.Copy(c, noise(3, size))
			})
			c := p.dial(t, port)
			io.WriteString(c, "request")
			c.CloseWrite()
			if diff := cmp.Diff(sum(t, noise(3, size)), sum(t, c)); diff != "" {
				t.Errorf("answer (-want +got):\n%s", diff)
			}
		})
		t.Run("server first", func(t *testing.T) {
			got := make(chan string, 1)
			port := p.server.listen(t, func(c *net.TCPConn) {
				io.WriteString(c, "banner")
				c.CloseWrite()
				got <- sum(t, c)
			})
			c := p.dial(t, port)
			banner, err := io.ReadAll(c) // to the server's FIN
			if string(banner) != "banner" || err != nil {
				t.Errorf("the client read %q and %v", banner, err)
			}
			io.Copy(c, noise(4, size))
			c.CloseWrite()
			if diff := cmp.Diff(sum(t, noise(4, size)), <-got); diff != "" {
				t.Errorf("upload (-want +got):\n%s", diff)
			}
		})
	})
}

// A client may send nothing but its FIN, before the server has even accepted. The FIN must wait for
// the handshake: shutdown(2) on a socket that still connects would abandon it.
func TestFINDuringDial(t *testing.T) {
	r := start(t, Config{})
	port := world.listen(t, func(c *net.TCPConn) {
		n, err := c.Read(make([]byte, 1))
		if n != 0 || err != io.EOF {
			t.Errorf("the server read %d bytes and %v, want the client's FIN", n, err)
		}
		io.WriteString(c, "banner")
	})
	if err := world.nft(`table inet slow {
		chain in {
			type filter hook input priority 0
			tcp flags syn drop
		}
	}`); err != nil {
		t.Fatal(err)
	}
	p := paths()[0]
	c := p.dial(t, port)
	c.CloseWrite()
	lab.Await(t, "the dial", func() bool { return r.metric(`connections_open{direction="outbound"}`) == 1 })
	if code, body := r.get("/livez"); code != 200 { // so the loop has seen the FIN
		t.Fatal(body)
	}
	if err := world.nft("delete table inet slow"); err != nil { // the kernel sends the SYN again
		t.Fatal(err)
	}
	if banner, err := io.ReadAll(c); string(banner) != "banner" || err != nil {
		t.Errorf("the client read %q and %v", banner, err)
	}
}

func TestServerSpeaksFirst(t *testing.T) {
	eachPath(t, func(t *testing.T, _ *relay, p path) {
		port := p.server.listen(t, func(c *net.TCPConn) {
			io.WriteString(c, "220 ready")
			lab.Echo(c)
		})
		c := p.dial(t, port)
		for _, want := range []string{"220 ready", "HELO", "QUIT"} {
			got := make([]byte, len(want))
			if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
				t.Fatalf("got %q and %v, want %q", got, err, want)
			}
			switch want {
			case "220 ready":
				io.WriteString(c, "HELO")
			case "HELO":
				io.WriteString(c, "QUIT")
			}
		}
	})
}

// Pipes are few, are used again, and never with somebody else's bytes in them.
func TestPipes(t *testing.T) {
	before := lab.Descriptors(t, os.Getpid())
	var p pipes
	defer p.close()
	var taken []*pipe
	for x := p.take(); x != nil; x = p.take() {
		taken = append(taken, x)
	}
	if len(taken) != maxPipes {
		t.Fatalf("%d pipes to be had, want %d", len(taken), maxPipes)
	}
	size, err := unix.FcntlInt(uintptr(taken[0].r), unix.F_GETPIPE_SZ, 0)
	if size != pipeSize || err != nil {
		t.Errorf("a pipe takes %d bytes (%v), want %d", size, err, pipeSize)
	}
	full := taken[0]
	full.n = 1
	for _, x := range taken {
		p.put(x)
	}
	if n := lab.Descriptors(t, os.Getpid()) - before; n != 2*idlePipes || p.made != idlePipes {
		t.Errorf("%d descriptors are open and %d pipes counted, want %d pipes", n, p.made, idlePipes)
	}
	for range idlePipes {
		if x := p.take(); x == full || x.n > 0 {
			t.Error("a pipe came back with bytes in it")
		} else {
			defer p.put(x)
		}
	}
}

// A server that does not read stops the client, costs no memory to speak of and no wake-ups, and
// loses nothing.
func TestBackPressure(t *testing.T) {
	eachPath(t, func(t *testing.T, r *relay, p path) {
		const flows = 10
		release := make(chan bool)
		got := make(chan string, flows)
		port := p.server.listen(t, func(c *net.TCPConn) {
			<-release
			got <- sum(t, c)
		})
		before := heap()
		chunk, _ := io.ReadAll(noise(5, 1<<20))
		conns, sent := make([]*net.TCPConn, flows), make([]int, flows)
		var full sync.WaitGroup
		for i := range conns {
			conns[i] = p.dial(t, port)
			full.Go(func() {
				conns[i].SetWriteDeadline(time.Now().Add(500 * time.Millisecond))
				for range 200 {
					n, err := conns[i].Write(chunk)
					if sent[i] += n; err != nil {
						break
					}
				}
			})
		}
		full.Wait()
		if held, limit := heap()-before, flows*(copySize+16<<10)+1<<20; held > limit {
			t.Errorf("%d blocked connections hold %d bytes of heap, want at most %d", flows, held, limit)
		}
		lab.Await(t, "a loop that sleeps", func() bool {
			wakeups := r.metric("loop_wakeups_total")
			time.Sleep(100 * time.Millisecond)
			return r.metric("loop_wakeups_total")-wakeups < 10 // the look itself wakes it
		})
		close(release)
		var want []string
		for i, c := range conns {
			c.CloseWrite()
			all := bytes.Repeat(chunk, sent[i]/len(chunk)+1)
			want = append(want, sum(t, bytes.NewReader(all[:sent[i]])))
		}
		for range conns {
			if g := <-got; !remove(&want, g) {
				t.Errorf("a server got %s, want one of %q", g, want)
			}
		}
	})
}

func heap() int {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc)
}

func remove(list *[]string, s string) bool {
	for i, x := range *list {
		if x == s {
			*list = append((*list)[:i:i], (*list)[i+1:]...)
			return true
		}
	}
	return false
}

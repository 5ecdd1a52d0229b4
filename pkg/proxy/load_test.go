package proxy

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/meshvirt/meshvirt/test/lab"
)

// gigabyte goes each way in TestGigabyte.
const gigabyte = 1 << 30

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// A gigabyte each way at once arrives whole and in order, then each side ends by its own FIN: spliced, and copied as
// where the user's pipes are used up.
func TestGigabyte(t *testing.T) {
	for _, how := range []string{"spliced", "copied"} {
		t.Run(how, func(t *testing.T) {
			r := start(t, Config{})
			l := r.loops[0]
			if how == "copied" {
				l.post(t.Context(), func() { l.pipes.backoff = 1 << 30 }) // no pipe is to be had
			}
			p := paths()[0]
			atServer := make(chan error, 1)
			c := p.dial(t, p.server.listen(t, func(c *net.TCPConn) { atServer <- exchange(c, 1, 2) }))
			if err := exchange(c, 2, 1); err != nil {
				t.Errorf("the client: %v", err)
			}
			if err := <-atServer; err != nil {
				t.Errorf("the server: %v", err)
			}
			lab.Await(t, "the connection closed", func() bool { return r.metric(`connections_open{direction="outbound"}`) == 0 })
			for _, from := range []string{"client", "server"} {
				if n := r.metric(fmt.Sprintf("bytes_total{direction=\"outbound\",from=%q}", from)); n != gigabyte {
					t.Errorf("%d bytes of the %s's counted, want %d", n, from, gigabyte)
				}
			}
			if l.pipes.made > 0 != (how == "spliced") {
				t.Errorf("the loop has made %d pipes", l.pipes.made)
			}
			if n := r.metric(`resets_total{direction="outbound"}`); n != 0 {
				t.Errorf("%d resets", n)
			}
		})
	}
}

// exchange sends a gigabyte and its FIN while it receives one, and says what is wrong with that.
func exchange(c *net.TCPConn, send, receive int) error {
	sent := make(chan error, 1)
	go func() {
		_, err := gigabyteOf(send, c.Write)
		sent <- errors.Join(err, c.CloseWrite())
	}()
	want, _ := gigabyteOf(receive, func(b []byte) (int, error) { return len(b), nil })
	got, n, buf := uint32(0), 0, make([]byte, 1<<18)
	for {
		m, err := c.Read(buf)
		got, n = crc32.Update(got, castagnoli, buf[:m]), n+m
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("read, after %d bytes: %w", n, err)
		}
	}
	if n != gigabyte || got != want {
		return fmt.Errorf("%d bytes of sum %x, want %d of %x", n, got, gigabyte, want)
	}
	return <-sent
}

// gigabyteOf writes what seed determines: numbered blocks of noise. It gives their sum.
func gigabyteOf(seed int, write func([]byte) (int, error)) (sum uint32, err error) {
	block, _ := io.ReadAll(noise(seed, 1<<20+13))
	for i, left := uint64(0), gigabyte; left > 0; i++ {
		binary.BigEndian.PutUint64(block, i)
		b := block[:min(left, len(block))]
		if _, err := write(b); err != nil {
			return 0, fmt.Errorf("write, %d bytes before the end: %w", left, err)
		}
		sum, left = crc32.Update(sum, castagnoli, b), left-len(b)
	}
	return sum, nil
}

// Bulk data that one side breaks off, sender or receiver: the other sees a true beginning of it, and a reset.
func TestResetMidTransfer(t *testing.T) {
	const after = 6 << 20
	breakOff := func(c *net.TCPConn) {
		c.SetLinger(0)
		c.Close()
	}
	all, _ := io.ReadAll(noise(7, 2*after))
	send := func(c *net.TCPConn) error {
		for range 1000 {
			if _, err := c.Write(all); err != nil {
				return err
			}
		}
		return errors.New("everything was taken")
	}
	receive := func(c *net.TCPConn) error {
		buf := make([]byte, 1<<18)
		for n := 0; ; {
			m, err := c.Read(buf)
			for i := range m {
				if buf[i] != all[(n+i)%len(all)] {
					return fmt.Errorf("byte %d is wrong", n+i)
				}
			}
			if n += m; err != nil {
				return fmt.Errorf("after %d bytes: %w", n, err)
			}
		}
	}
	sendSome := func(c *net.TCPConn) { c.Write(all[:after]); breakOff(c) }
	receiveSome := func(c *net.TCPConn) { io.CopyN(io.Discard, struct{ io.Reader }{c}, after); breakOff(c) }
	eachPath(t, func(t *testing.T, r *relay, p path) {
		for _, c := range []struct {
			name   string
			breaks func(*net.TCPConn)
			sees   func(*net.TCPConn) error
		}{{"sender", sendSome, receive}, {"receiver", receiveSome, send}} {
			t.Run("by client, "+c.name, func(t *testing.T) {
				seen := make(chan error, 1)
				conn := p.dial(t, p.server.listen(t, func(s *net.TCPConn) { seen <- c.sees(s) }))
				c.breaks(conn)
				if err := <-seen; !lab.IsReset(err) {
					t.Errorf("the server saw %v, want a reset", err)
				}
			})
			t.Run("by server, "+c.name, func(t *testing.T) {
				// After a first byte: a reset that comes sooner is already the dial's error.
				conn := p.dial(t, p.server.listen(t, func(s *net.TCPConn) {
					io.ReadFull(s, make([]byte, 1))
					c.breaks(s)
				}))
				conn.Write([]byte{0})
				if err := c.sees(conn); !lab.IsReset(err) {
					t.Errorf("the client saw %v, want a reset", err)
				}
			})
		}
		if n := r.metric(fmt.Sprintf("resets_total{direction=%q}", p.dir)); n != 4 {
			t.Errorf("%d resets counted, want 4", n)
		}
	})
}

// Told to drain in the midst of many transfers, the relay lets each of them end in good order.
func TestDrainUnderLoad(t *testing.T) {
	const flows, size = 100, 2 << 20
	r := start(t, Config{Drain: time.Minute})
	var begun, done sync.WaitGroup
	begun.Add(flows)
	for i := range flows {
		p := paths()[i%4]
		want, got := make(chan string, 1), make(chan string, 1)
		port := p.server.listen(t, func(c *net.TCPConn) {
			begun.Done()
			h := sum(t, c) // to the client's FIN
			got <- h
			io.Copy(c, noise(i, size))
			c.CloseWrite()
		})
		c := p.dial(t, port)
		done.Go(func() {
			half := noise(1000+i, size)
			io.CopyN(c, half, size/2)
			begun.Wait()
			io.Copy(c, half)
			c.CloseWrite()
			want <- sum(t, noise(1000+i, size))
			if diff := cmp.Diff(<-want, <-got); diff != "" {
				t.Errorf("what server %d got (-want +got):\n%s", i, diff)
			}
			if diff := cmp.Diff(sum(t, noise(i, size)), sum(t, c)); diff != "" {
				t.Errorf("what client %d got (-want +got):\n%s", i, diff)
			}
		})
	}
	begun.Wait()
	r.drain()
	done.Wait()
	if err := r.wait(); err != nil {
		t.Errorf("run: %v", err)
	}
	for _, dir := range []direction{outbound, inbound} {
		if n := r.metric(fmt.Sprintf("resets_total{direction=%q}", dir)); n != 0 {
			t.Errorf("%d %s connections were reset", n, dir)
		}
	}
}

// Many dials to a host that does not answer end together by their time-out, and disturb nobody meanwhile.
func TestDialsThatHang(t *testing.T) {
	const dials = 300
	if err := world.nft("table inet blackhole { chain in { type filter hook input priority 0; tcp dport 9 drop\n}\n}"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := world.nft("delete table inet blackhole"); err != nil {
			t.Error(err)
		}
	})
	r := start(t, Config{DialTimeout: 2 * time.Second})
	p := paths()[0]
	other := p.dial(t, p.server.listen(t, lab.Echo))
	ping(t, other)
	idle := used(t)
	var hanging []*net.TCPConn
	for range dials {
		hanging = append(hanging, p.dial(t, 9))
	}
	ping(t, other)
	for _, c := range hanging {
		wantReset(t, c)
		c.Close()
	}
	ping(t, other)
	if n := r.metric(`dial_failures_total{direction="outbound",reason="timeout"}`); n != dials {
		t.Errorf("%d time-outs counted, want %d", n, dials)
	}
	if now := used(t); now.descriptors > idle.descriptors {
		t.Errorf("%d descriptors after the time-outs, before %d", now.descriptors, idle.descriptors)
	}
}

// A flood of SYNs that nobody follows up fills the kernel's queue, which then asks newcomers for a cookie. The
// relay sees none of it, and serves whoever means it.
func TestSYNFlood(t *testing.T) {
	const syns = 3 * 4096 // thrice the relay's backlog
	if err := guest.nft("table ip mute { chain out { type filter hook output priority 0; tcp flags rst drop\n}\n}"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := guest.nft("delete table ip mute"); err != nil {
			t.Error(err)
		}
	})
	r := start(t, Config{})
	p := paths()[0]
	port := p.server.listen(t, lab.Echo)
	early := p.dial(t, port)
	ping(t, early)
	before, cookies := used(t), syncookies(t)
	var raw net.PacketConn
	if err := guest.do(func() (err error) { raw, err = net.ListenPacket("ip4:tcp", guest4.String()); return err }); err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	to := &net.IPAddr{IP: world4.AsSlice()}
	for i := range syns {
		for try := 0; ; try++ {
			if _, err := raw.WriteTo(syn(netip.AddrPortFrom(guest4, uint16(20000+i)), netip.AddrPortFrom(world4, 80)), to); err == nil {
				break
			} else if !errors.Is(err, unix.ENOBUFS) || try == 1000 {
				t.Fatal(err)
			}
		}
	}
	raw.Close()
	lab.Await(t, "the kernel send cookies", func() bool { return syncookies(t) > cookies })
	ping(t, early)
	for range 10 {
		ping(t, p.dial(t, port))
	}
	if n := r.metric(`connections_total{direction="outbound"}`); n != 11 {
		t.Errorf("the relay took %d connections, want the 11 that were meant", n)
	}
	if now := used(t); now.goroutines > before.goroutines+10 || now.descriptors > before.descriptors+4*10 {
		t.Errorf("afterwards %+v, before %+v, want 10 connections more", now, before)
	}
}

// syn is a TCP segment that opens a connection.
func syn(from, to netip.AddrPort) []byte {
	b := make([]byte, 20)
	binary.BigEndian.PutUint16(b, from.Port())
	binary.BigEndian.PutUint16(b[2:], to.Port())
	b[12], b[13] = 5<<4, 2 // length in words, flag SYN
	binary.BigEndian.PutUint16(b[14:], 65535)
	total := uint32(unix.IPPROTO_TCP + len(b)) // the pseudo-header's share of the checksum
	for _, part := range [][]byte{from.Addr().AsSlice(), to.Addr().AsSlice(), b} {
		for i := 0; i < len(part); i += 2 {
			total += uint32(binary.BigEndian.Uint16(part[i:]))
		}
	}
	for total > 0xffff {
		total = total>>16 + total&0xffff
	}
	binary.BigEndian.PutUint16(b[16:], ^uint16(total))
	return b
}

// syncookies is how many the pod's kernel has sent.
func syncookies(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile("/proc/thread-self/net/netstat")
	if err != nil {
		t.Fatal(err)
	}
	names, values, _ := bytes.Cut(b, []byte("\n"))
	values, _, _ = bytes.Cut(values, []byte("\n"))
	for i, name := range strings.Fields(string(names)) {
		if name == "SyncookiesSent" {
			n, err := strconv.Atoi(strings.Fields(string(values))[i])
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("no SyncookiesSent in %s", b)
	return 0
}

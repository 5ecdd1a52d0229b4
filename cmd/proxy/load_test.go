package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meshvirt/meshvirt/test/lab"
)

// serverMarker marks the process that is far in TestBinaryLoad, so that it has descriptors of its own.
const serverMarker = "MESHVIRT_PROXY_SERVE"

// serverPorts is how many ports it serves: each has source ports for some 28,000 connections.
const serverPorts = 4

// loadServer echoes, and after the client's FIN tells the checksum of what it got.
func loadServer() {
	handle := func(c *net.TCPConn) {
		defer c.Close()
		sum, buf := crc32.NewIEEE(), make([]byte, 2<<10)
		for {
			n, err := c.Read(buf)
			sum.Write(buf[:n])
			if n > 0 {
				if _, err := c.Write(buf[:n]); err != nil {
					return
				}
			}
			if err != nil {
				break
			}
		}
		c.Write(sum.Sum(nil))
	}
	for range serverPorts {
		ln, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Println(ln.Addr().(*net.TCPAddr).Port)
		go func() {
			for {
				c, err := ln.AcceptTCP()
				if err != nil {
					fmt.Fprintln(os.Stderr, err)
					os.Exit(1)
				}
				go handle(c)
			}
		}()
	}
	io.Copy(io.Discard, os.Stdin) // until the test is over
	os.Exit(0)
}

// startServer starts that process and gives its ports.
func startServer(t testing.TB) (ports []uint16) {
	t.Helper()
	for lines := bufio.NewScanner(helper(t, serverMarker, nil)); len(ports) < serverPorts && lines.Scan(); {
		port, err := strconv.ParseUint(lines.Text(), 10, 16)
		if err != nil {
			t.Fatal(err)
		}
		ports = append(ports, uint16(port))
	}
	if len(ports) < serverPorts {
		t.Fatal("the server did not start")
	}
	return ports
}

// Ten thousand connections are idle while two thousand are busy: every byte arrives, both ways, the idle ones still
// work afterwards, each costs two descriptors to the byte, and in the end nothing is left. Where the hard limit of
// descriptors is too low for that many and may not be raised, as many are idle as it allows.
func TestBinaryLoad(t *testing.T) {
	idle, busy := 10000, 2000
	limit := raiseLimit(t, uint64(2*(idle+busy)+1000))
	if most := int(limit-300)/2 - busy; most < idle {
		t.Logf("RLIMIT_NOFILE is %d: %d connections are idle, not %d", limit, most, idle)
		idle = most
	}
	if idle < busy {
		t.Fatalf("RLIMIT_NOFILE is %d, want 8,300 at least", limit)
	}
	ports := startServer(t)
	p := start(t, "", encode(t, nil))
	http.DefaultClient.CloseIdleConnections()
	client := &http.Client{Transport: &http.Transport{MaxConnsPerHost: 1}}
	open := func() int { return p.metric(client, `connections_open{direction="outbound"}`) }
	if n := open(); n != 0 {
		t.Fatalf("%d connections are open before the test", n)
	}
	before, pipes := p.files(), p.files("pipe")

	conns := make([]*net.TCPConn, idle+busy)
	each(t, 16, conns, func(i int) error {
		c, err := tryDial(t, ports[i%serverPorts])
		if err != nil {
			return err
		}
		conns[i] = c
		c.SetDeadline(time.Now().Add(3 * time.Minute))
		return lab.Ping(c)
	})
	if n := open(); n != len(conns) {
		t.Errorf("%d connections are open, want %d", n, len(conns))
	}
	if n := p.files() - before; n != 2*len(conns) {
		t.Errorf("%d descriptors for %d connections, want exactly 2 each", n, len(conns))
	}

	each(t, busy, conns[:busy], func(i int) error { return converse(conns[i], i) })
	each(t, 16, conns[busy:], func(i int) error { return lab.Ping(conns[busy+i]) })
	p.await("the busy ones gone", func() bool { return open() == idle })
	const keptPipes = 2 * 2 // ends of the pipes that a loop keeps for the next burst
	if n := p.files() - before - 2*idle; n < 0 || n > keptPipes {
		t.Errorf("%d descriptors more than the idle connections', want %d at most", n, keptPipes)
	}

	each(t, 16, conns[busy:], func(i int) error { return goodbye(conns[busy+i], []byte("pingping"), nil) })
	p.await("all gone", func() bool { return open() == 0 })
	if n := p.files() - before; n < 0 || n > keptPipes {
		t.Errorf("%d descriptors are left, want %d at most", n, keptPipes)
	}
	if n := p.files("pipe") - pipes; n > keptPipes {
		t.Errorf("%d ends of pipes are left, want %d at most", n, keptPipes)
	}
	if n := p.metric(client, `resets_total{direction="outbound"}`); n != 0 {
		t.Errorf("%d connections were reset", n)
	}
	client.CloseIdleConnections()
	p.cmd.Process.Signal(syscall.SIGTERM)
	if err := p.wait(); err != nil {
		t.Errorf("the relay ended with %v, want status 0", err)
	}
}

// raiseLimit raises RLIMIT_NOFILE of this process, and so of those that it starts, as far as it may.
func raiseLimit(t *testing.T, want uint64) uint64 {
	t.Helper()
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		t.Fatal(err)
	}
	if files.Max < want {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: want, Max: want}); err == nil {
			return want
		} else if !errors.Is(err, unix.EPERM) {
			t.Fatal(err)
		}
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: files.Max, Max: files.Max}); err != nil {
		t.Fatal(err)
	}
	return files.Max
}

// each calls do for every connection, some at a time, and fails the test if one fails.
func each(t *testing.T, atOnce int, conns []*net.TCPConn, do func(i int) error) {
	t.Helper()
	var all sync.WaitGroup
	slots, failed := make(chan bool, atOnce), make(chan error, len(conns))
	for i := range conns {
		slots <- true
		all.Go(func() {
			defer func() { <-slots }()
			if err := do(i); err != nil {
				failed <- fmt.Errorf("connection %d: %w", i, err)
			}
		})
	}
	all.Wait()
	if n := len(failed); n > 0 {
		t.Fatalf("%d of %d failed, first %v", n, len(conns), <-failed)
	}
}

// converse sends noise and its FIN, and checks what comes back, which the server's checksum of all follows.
func converse(c *net.TCPConn, seed int) error {
	r := rand.New(rand.NewPCG(uint64(seed), 0))
	sent := make([]byte, 20<<10+r.IntN(80<<10))
	for i := 0; i+8 <= len(sent); i += 8 {
		binary.LittleEndian.PutUint64(sent[i:], r.Uint64())
	}
	wrote := make(chan error, 1)
	go func() {
		for rest := sent; len(rest) > 0; {
			n := min(1+r.IntN(16<<10), len(rest))
			if _, err := c.Write(rest[:n]); err != nil {
				wrote <- err
				return
			}
			rest = rest[n:]
		}
		wrote <- c.CloseWrite()
	}()
	err := goodbye(c, append([]byte("ping"), sent...), sent)
	return errors.Join(err, <-wrote)
}

// goodbye reads a connection to its end: what is still to come back, if anything, and the checksum of all that was
// sent. Where nothing is to come it sends the client's FIN first.
func goodbye(c *net.TCPConn, sent, back []byte) error {
	defer c.Close()
	if back == nil {
		if err := c.CloseWrite(); err != nil {
			return err
		}
	}
	got, err := io.ReadAll(c)
	if err != nil {
		return err
	}
	if want := binary.BigEndian.AppendUint32(back, crc32.ChecksumIEEE(sent)); !bytes.Equal(got, want) {
		return fmt.Errorf("%d bytes came back, want other %d", len(got), len(want))
	}
	return nil
}

// BenchmarkIdleConnection tells what the relay holds for each of 3,000 idle connections.
func BenchmarkIdleConnection(b *testing.B) {
	const flows = 3000
	var memory int
	for b.Loop() {
		p := start(b, "", encode(b, nil))
		port := serve(b)
		var conns []*net.TCPConn
		open := func(n int) {
			for range n {
				c := dial(b, port)
				if err := lab.Ping(c); err != nil {
					b.Fatal(err)
				}
				conns = append(conns, c)
			}
		}
		open(200) // the heap's first growth
		before := p.memory()
		open(flows)
		memory += p.memory() - before
		for _, c := range conns {
			c.Close()
		}
		p.cmd.Process.Kill()
		p.wait()
	}
	b.ReportMetric(float64(memory)/float64(flows*b.N), "B/connection")
}

// memory is the resident set of the process, in bytes.
func (p *process) memory() int {
	p.t.Helper()
	kb, err := strconv.Atoi(strings.TrimSuffix(p.status("VmRSS"), " kB"))
	if err != nil {
		p.t.Fatal(err)
	}
	return kb << 10
}

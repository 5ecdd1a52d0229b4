package proxy

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"github.com/meshvirt/meshvirt/pkg/sockopt"
	"github.com/meshvirt/meshvirt/test/lab"
)

// benchMarker names the relay that a child of the test process is, if it is one.
const benchMarker = "MESHVIRT_PROXY_BENCH"

// BenchmarkRelay compares the relay with the plainest proxy that Go can write, in one run. Each is a
// process of its own, as in a pod.
func BenchmarkRelay(b *testing.B) {
	p := paths()[0]
	for _, load := range []struct {
		name string
		run  func(*testing.B)
	}{
		{"connect", func(b *testing.B) { // and one byte back
			to := netip.AddrPortFrom(p.target, p.server.listen(b, func(c *net.TCPConn) { c.Write([]byte{1}) }))
			b.ResetTimer()
			err := p.client.do(func() error {
				for range b.N {
					c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(to))
					if err != nil {
						return err
					}
					if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
						return err
					}
					c.Close()
				}
				return nil
			})
			if err != nil {
				b.Fatal(err)
			}
		}},
		{"ping", func(b *testing.B) {
			c := p.dial(b, p.server.listen(b, lab.Echo))
			b.ResetTimer()
			for range b.N {
				ping(b, c)
			}
		}},
		{"bulk", func(b *testing.B) {
			c := p.dial(b, p.server.listen(b, func(c *net.TCPConn) { io.Copy(io.Discard, c) }))
			chunk := make([]byte, 1<<20)
			b.SetBytes(int64(len(chunk)))
			b.ResetTimer()
			for range b.N {
				if _, err := c.Write(chunk); err != nil {
					b.Fatal(err)
				}
			}
			c.CloseWrite()
			io.Copy(io.Discard, c) // until the server has read all
		}},
	} {
		for _, relay := range []string{"epoll", "io.Copy"} {
			b.Run(load.name+"/"+relay, func(b *testing.B) {
				startProcess(b, relay)
				load.run(b)
			})
		}
	}
}

func startProcess(b *testing.B, relay string) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), benchMarker+"="+relay)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := pod.do(cmd.Start); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	// Not by a dial to the relay itself: the plain one would dial itself for ever.
	port := world.listen(b, func(*net.TCPConn) {})
	lab.Await(b, "the relay", func() bool {
		c, err := guest.dial(netip.Addr{}, netip.AddrPortFrom(world4, port))
		if err == nil {
			c.Close()
		}
		return err == nil
	})
}

// benchRelay is the child process.
func benchRelay(name string) error {
	if name == "io.Copy" {
		return copyRelay()
	}
	p, err := New(Config{
		OutboundPort: outPort, InboundPort: inPort, StatusPort: statPort,
		GuestIPv4: guest4, GuestIPv6: guest6, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return err
	}
	return p.Run(context.Background())
}

// copyRelay is two goroutines and io.Copy per connection.
func copyRelay() error {
	ln, err := net.ListenTCP("tcp", &net.TCPAddr{Port: outPort})
	if err != nil {
		return err
	}
	for {
		c, err := ln.AcceptTCP()
		if err != nil {
			return err
		}
		go copyBoth(c)
	}
}

func copyBoth(client *net.TCPConn) {
	defer client.Close()
	raw, err := client.SyscallConn()
	if err != nil {
		return
	}
	var to netip.AddrPort
	raw.Control(func(fd uintptr) { to, err = sockopt.OriginalDst(int(fd), false) })
	if err != nil {
		return
	}
	server, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(to))
	if err != nil {
		return
	}
	defer server.Close()
	done := make(chan bool)
	go func() {
		io.Copy(server, client)
		server.CloseWrite()
		close(done)
	}()
	io.Copy(client, server)
	client.CloseWrite()
	<-done
}

package main

import (
	"errors"
	"io"
	"net"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/meshvirt/meshvirt/test/lab"
)

// Killed under traffic, the relay leaves no connection hanging and none that looks as if it had ended well: both
// ends see a reset, whatever they were doing. Until it is there again, new connections are refused and nothing
// gets to far by another way; then they work.
func TestBinaryKilled(t *testing.T) {
	// Each is a connection before the kill: what the client and the server do until they see its end.
	kinds := []struct {
		name           string
		client, server func(*net.TCPConn) error
	}{
		{"idle", wantNothing, wantNothing},
		{"client sends", sendForEver, receiveForEver},
		{"server sends", receiveForEver, sendForEver},
		{"both send", both(sendForEver, receiveForEver), both(sendForEver, receiveForEver)},
		{"server does not read", sendForEver, stall},
		{"client does not read", stall, sendForEver},
		{"client has closed its side", halfClosed, receiveThen(sendForEver)},
		{"server has closed its side", receiveThen(sendForEver), halfClosed},
	}
	p := start(t, "", encode(t, nil))
	pipes := p.files("pipe")
	var accepted atomic.Int32
	ends := make(chan error, 2*len(kinds))
	ready := make(chan bool, len(kinds))
	var ports []uint16
	for _, k := range kinds {
		ports = append(ports, serveBy(t, func(c *net.TCPConn) {
			accepted.Add(1)
			lab.Ping(c)
			ready <- true
			ends <- named("the server of: "+k.name, k.server(c))
		}))
	}
	for i, k := range kinds {
		c := dial(t, ports[i])
		io.CopyN(c, c, 4)
		<-ready
		go func() { ends <- named("the client of: "+k.name, k.client(c)) }()
	}
	p.await("traffic", func() bool { return p.files("pipe") > pipes }) // bulk data moves
	p.cmd.Process.Kill()
	for range cap(ends) {
		if err := <-ends; !lab.IsReset(err) {
			t.Errorf("%v, want a reset", err)
		}
	}
	p.wait()

	before := accepted.Load()
	for range 20 {
		if _, err := tryDial(t, ports[0]); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("while it is down: %v, want %v", err, unix.ECONNREFUSED)
		}
	}
	if n := accepted.Load() - before; n != 0 {
		t.Errorf("%d connections passed the relay by", n)
	}

	again := start(t, "", encode(t, nil)) // as the kubelet does
	c := dial(t, serve(t))
	if err := lab.Ping(c); err != nil {
		t.Errorf("after the restart: %v", err)
	}
	c.Close()
	again.cmd.Process.Signal(syscall.SIGTERM)
	if err := again.wait(); err != nil {
		t.Error(err)
	}
}

// named says whose end a connection's end was. An end without error was a FIN.
func named(who string, err error) error {
	if err == nil {
		err = io.EOF
	}
	return errors.Join(errors.New(who), err)
}

// wantNothing waits for the end.
func wantNothing(c *net.TCPConn) error {
	_, err := c.Read(make([]byte, 1))
	return err
}

func sendForEver(c *net.TCPConn) error {
	for b := make([]byte, 256<<10); ; {
		if _, err := c.Write(b); err != nil {
			return err
		}
	}
}

func receiveForEver(c *net.TCPConn) error {
	for b := make([]byte, 256<<10); ; {
		if _, err := c.Read(b); err != nil {
			return err
		}
	}
}

// stall reads nothing until the kernel tells of the end, which a reset does at once: it drops what was not read.
func stall(c *net.TCPConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var pending int
	e := raw.Write(func(fd uintptr) bool {
		pending, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		return err != nil || pending != 0
	})
	if pending != 0 {
		return unix.Errno(pending)
	}
	return errors.Join(err, e)
}

func both(send, receive func(*net.TCPConn) error) func(*net.TCPConn) error {
	return func(c *net.TCPConn) error {
		ended := make(chan error, 2)
		go func() { ended <- send(c) }()
		go func() { ended <- receive(c) }()
		// The kernel tells of a reset once, to whoever asks first; a write says EPIPE then, a read EOF.
		a, b := <-ended, <-ended
		if lab.IsReset(a) {
			return a
		}
		return b
	}
}

func halfClosed(c *net.TCPConn) error {
	if err := c.CloseWrite(); err != nil {
		return err
	}
	return receiveForEver(c)
}

// receiveThen reads to the other side's FIN first.
func receiveThen(then func(*net.TCPConn) error) func(*net.TCPConn) error {
	return func(c *net.TCPConn) error {
		if _, err := io.Copy(io.Discard, struct{ io.Reader }{c}); err != nil {
			return err
		}
		return then(c)
	}
}

package lab

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Serve has each connection served, for a minute at most, until the test ends. It gives the port.
func Serve(t testing.TB, ln *net.TCPListener, serve func(*net.TCPConn)) uint16 {
	t.Helper()
	var open sync.WaitGroup
	open.Go(func() {
		for {
			c, err := ln.AcceptTCP()
			if err != nil {
				return
			}
			c.SetDeadline(time.Now().Add(time.Minute))
			open.Go(func() {
				defer c.Close()
				serve(c)
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		open.Wait()
	})
	return uint16(ln.Addr().(*net.TCPAddr).Port)
}

// Echo sends everything back, then its FIN. It hides what c is from io.Copy, which would use pipes.
func Echo(c *net.TCPConn) {
	io.CopyBuffer(struct{ io.Writer }{c}, struct{ io.Reader }{c}, make([]byte, 16<<10))
	c.CloseWrite()
}

// Ping sees whether a connection to Echo works.
func Ping(c net.Conn) error {
	got := make([]byte, 4)
	if _, err := io.WriteString(c, "ping"); err != nil {
		return err
	}
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if string(got) != "ping" {
		return fmt.Errorf("echo gave %q", got)
	}
	return nil
}

// IsReset reports whether the other side broke the connection.
func IsReset(err error) bool { return errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE) }

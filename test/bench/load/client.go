package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// connected is what connect measured. P50 and P99 are of the time from connect to the byte that came
// back, in microseconds.
type connected struct {
	N        int
	P50, P99 float64
}

// connect opens one connection after the other, sends a byte and gets one back. It uses blocking system
// calls, so that no runtime stands between the kernel and the clock. The socket has no time-outs, with
// which a signal of the runtime would interrupt connect for good; who started this bounds it.
func connect(to netip.AddrPort, slice time.Duration) (connected, error) {
	var took []time.Duration
	for end := time.Now().Add(slice); time.Now().Before(end) || len(took) == 0; {
		d, err := converse(to)
		if err != nil {
			return connected{}, fmt.Errorf("connection %d: %w", len(took)+1, err)
		}
		took = append(took, d)
	}
	slices.Sort(took)
	at := func(percent int) float64 { return float64(took[len(took)*percent/100].Nanoseconds()) / 1e3 }
	return connected{len(took), at(50), at(99)}, nil
}

func converse(to netip.AddrPort) (time.Duration, error) {
	start := time.Now()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	b := []byte{'?'}
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"connect", func() error {
			return unix.Connect(fd, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())})
		}},
		{"write", func() error { _, err := unix.Write(fd, b); return err }},
		{"read", func() error {
			n, err := unix.Read(fd, b)
			if err == nil && n == 0 {
				err = io.ErrUnexpectedEOF
			}
			return err
		}},
	} {
		if err := step.do(); err != nil {
			return 0, os.NewSyscallError(step.name, err)
		}
	}
	return time.Since(start), nil
}

// moved is what bulk measured: the bytes that the server says it got, and the time from the first
// write to its word.
type moved struct {
	Bytes   int64
	Seconds float64
}

// bulk sends on n connections at a time.
func bulk(to netip.AddrPort, n int, slice time.Duration) (moved, error) {
	conns := make([]*net.TCPConn, n)
	for i := range conns {
		c, err := net.DialTimeout("tcp", to.String(), patience)
		if err != nil {
			return moved{}, err
		}
		defer c.Close()
		conns[i] = c.(*net.TCPConn)
	}
	start := time.Now()
	got := make([]int64, n)
	var g errgroup.Group
	for i, c := range conns {
		g.Go(func() (err error) {
			got[i], err = send(c, start.Add(slice))
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return moved{}, err
	}
	m := moved{Seconds: time.Since(start).Seconds()}
	for _, b := range got {
		m.Bytes += b
	}
	return m, nil
}

// send writes until end and gives what the server has counted, which must be all.
func send(c *net.TCPConn, end time.Time) (int64, error) {
	if err := c.SetDeadline(end.Add(patience)); err != nil {
		return 0, err
	}
	chunk := make([]byte, bulkChunk)
	var sent int64
	for time.Now().Before(end) || sent == 0 {
		n, err := c.Write(chunk)
		sent += int64(n)
		if err != nil {
			return 0, err
		}
	}
	if err := c.CloseWrite(); err != nil {
		return 0, err
	}
	count := make([]byte, 8)
	if _, err := io.ReadFull(c, count); err != nil {
		return 0, fmt.Errorf("read the server's count: %w", err)
	}
	if got := int64(binary.BigEndian.Uint64(count)); got != sent {
		return 0, fmt.Errorf("%d bytes arrived, want the %d sent", got, sent)
	}
	return sent, nil
}

// hold opens n connections, each of which has carried a byte there and back, and leaves them open.
func hold(to netip.AddrPort, n int) error {
	for i := range n {
		c, err := net.DialTimeout("tcp", to.String(), patience)
		if err != nil {
			return fmt.Errorf("connection %d of %d: %w", i+1, n, err)
		}
		held = append(held, c)
		b := []byte{'?'}
		_, werr := c.Write(b)
		rerr := c.SetReadDeadline(time.Now().Add(patience))
		if rerr == nil {
			_, rerr = io.ReadFull(c, b)
		}
		if err := errors.Join(werr, rerr); err != nil {
			return fmt.Errorf("connection %d of %d: %w", i+1, n, err)
		}
	}
	return nil
}

// held keeps connections from being collected as garbage.
var held []net.Conn

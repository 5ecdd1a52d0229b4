package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"

	"github.com/meshvirt/meshvirt/pkg/sockopt"
)

// bulkChunk is what bulk data is written and read in.
const bulkChunk = 256 << 10

// Answers to any HTTP request. The second makes the client open a connection for the next.
const (
	keepAnswer  = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
	closeAnswer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"
)

// serve listens on four ports: bytes come back, HTTP with and without keep-alive, bulk data is counted.
func serve(port uint16) error {
	for i, handle := range []func(*net.TCPConn){
		echo,
		func(c *net.TCPConn) { answer(c, keepAnswer) },
		func(c *net.TCPConn) { answer(c, closeAnswer) },
		count,
	} {
		if err := listen(port+uint16(i), handle); err != nil {
			return err
		}
	}
	return nil
}

func listen(port uint16, handle func(*net.TCPConn)) error {
	ln, err := net.ListenTCP("tcp4", &net.TCPAddr{Port: int(port)})
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := ln.AcceptTCP()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				continue
			}
			go func() {
				defer c.Close()
				handle(c)
			}()
		}
	}()
	return nil
}

func echo(c *net.TCPConn) {
	b := make([]byte, 1)
	for {
		if _, err := c.Read(b); err != nil {
			return
		}
		if _, err := c.Write(b); err != nil {
			return
		}
	}
}

// answer knows where a request ends by its empty line; the client does not send the next before the answer.
func answer(c *net.TCPConn, with string) {
	b, have := make([]byte, 4096), 0
	for have < len(b) {
		n, err := c.Read(b[have:])
		if err != nil {
			return
		}
		if have += n; !bytes.HasSuffix(b[:have], []byte("\r\n\r\n")) {
			continue
		}
		have = 0
		if _, err := io.WriteString(c, with); err != nil {
			return
		}
	}
}

func count(c *net.TCPConn) {
	b := make([]byte, bulkChunk)
	for total := uint64(0); ; {
		n, err := c.Read(b)
		total += uint64(n)
		if errors.Is(err, io.EOF) {
			_, _ = c.Write(binary.BigEndian.AppendUint64(nil, total))
		}
		if err != nil {
			return
		}
	}
}

// relay is two goroutines and io.Copy per connection, to where it went before it was redirected.
func relay(port uint16) error { return listen(port, relayOne) }

func relayOne(client *net.TCPConn) {
	raw, err := client.SyscallConn()
	if err != nil {
		return
	}
	var to netip.AddrPort
	if cerr := raw.Control(func(fd uintptr) { to, err = sockopt.OriginalDst(int(fd), false) }); cerr != nil || err != nil {
		return
	}
	server, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(to))
	if err != nil {
		return
	}
	defer server.Close()
	done := make(chan struct{})
	go func() {
		copyHalf(server, client)
		close(done)
	}()
	copyHalf(client, server)
	<-done
}

// copyHalf copies one direction to its end. After an error there is no use for the other one.
func copyHalf(dst, src *net.TCPConn) {
	if _, err := io.Copy(dst, src); err != nil {
		dst.Close()
		src.Close()
		return
	}
	_ = dst.CloseWrite()
}

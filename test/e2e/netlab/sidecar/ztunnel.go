package sidecar

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meshvirt/meshvirt/test/e2e/netlab/agent"
)

// proxyMark is on every packet of ztunnel's, so that the pod's rules know it: ztunnel has no user of
// its own there. A transparent Envoy has the same (1337) on what it sends to the application.
const proxyMark = 0x539

// RunZtunnel stands in for the proxy of an ambient mesh. It runs on the node and opens its sockets in
// the pod's network namespace, or, if transparent, in its own pod, as it did at first; it dials the application from the client's own address. Of HBONE there
// is the shape only: HTTP/1.1 CONNECT to an address of the pod, without TLS. Input and output are
// as of Run. It needs CAP_NET_ADMIN.
func RunZtunnel(cfg Config, in io.Reader, out io.Writer) error {
	s := &server{log: json.NewEncoder(out), quiet: cfg.Quiet}
	any, loopback := []string{"0.0.0.0"}, []string{"127.0.0.1"}
	if cfg.IPv6 {
		any, loopback = append(any, "::"), append(loopback, "::1")
	}
	marked, leaves, enters := net.ListenConfig{Control: control(mark)}, s.leaves, s.enters
	if cfg.Transparent {
		marked.Control, leaves, enters = control(mark, transparent), s.transparent(Out), s.transparent(In)
	}
	for _, l := range []struct {
		port   uint16
		handle func(uint16, *net.TCPConn)
	}{{Outbound, leaves}, {Inbound, enters}, {HBONE, s.tunnel}} {
		for _, addr := range any {
			ln, err := listen(marked, addr, l.port)
			if err != nil {
				return err
			}
			go agent.Accept(ln, func(c *net.TCPConn) { l.handle(l.port, c) })
		}
	}
	if cfg.DNS {
		for _, addr := range loopback {
			if err := s.serveDNS(addr, marked); err != nil {
				return err
			}
		}
	}
	return s.sync(in)
}

// leaves passes on what the application opens.
func (s *server) leaves(port uint16, c *net.TCPConn) {
	s.pass(Out, port, c, net.Dialer{Control: control(mark)})
}

// enters passes on what comes to the application without a tunnel.
func (s *server) enters(port uint16, c *net.TCPConn) {
	s.pass(In, port, c, as(c))
}

// as dials from the address, though not the port, of c's client.
func as(c *net.TCPConn) net.Dialer {
	return net.Dialer{LocalAddr: &net.TCPAddr{IP: remote(c).Addr().AsSlice()}, Control: control(mark, transparent)}
}

// tunnel serves CONNECT to the pod, and answers any other request.
func (s *server) tunnel(port uint16, c *net.TCPConn) {
	c.SetReadDeadline(time.Now().Add(dialTimeout))
	req, err := http.ReadRequest(bufio.NewReader(c)) // no further: the client waits for the answer
	c.SetReadDeadline(time.Time{})
	if err != nil || req.Method != http.MethodConnect {
		s.take(Serving, port, remote(c), local(c))
		if err == nil {
			fmt.Fprint(c, "HTTP/1.1 200 OK\r\nServer: ztunnel\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
		}
		return
	}
	to, err := netip.ParseAddrPort(req.Host)
	if err == nil && to.Addr() != local(c).Addr() {
		err = errors.New("is not for this pod")
	}
	s.relay(s.take(Tunnel, port, remote(c), to), c, as(c), err, "HTTP/1.1 200 OK\r\n\r\n")
}

// control applies socket options before a socket is bound.
func control(options ...func(network string, fd int) error) func(string, string, syscall.RawConn) error {
	return func(network, _ string, raw syscall.RawConn) (err error) {
		cerr := raw.Control(func(fd uintptr) {
			for _, o := range options {
				err = errors.Join(err, o(network, int(fd)))
			}
		})
		return errors.Join(cerr, err)
	}
}

func mark(_ string, fd int) error {
	return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, proxyMark)
}

// transparent lets a socket have an address that is not the host's.
func transparent(network string, fd int) error {
	if network == "tcp6" {
		return unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_TRANSPARENT, 1)
	}
	return unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_TRANSPARENT, 1)
}

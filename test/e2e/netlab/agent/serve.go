package agent

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/rpc"
	"net/rpc/jsonrpc"
	"os/exec"
	"sync"
	"time"
)

// serverTimeout bounds one conversation at the server's side, so that a broken one ends.
const serverTimeout = 10 * time.Second

// tokenHeader carries the token of an HTTP attempt.
const tokenHeader = "X-Lab-Token"

// Serve answers the lab on conn until it is closed. The name is what Seen.Host says.
func Serve(name string, conn io.ReadWriteCloser) error {
	s := rpc.NewServer()
	if err := s.RegisterName("Agent", &methods{name: name, open: map[string]bool{}}); err != nil {
		return err
	}
	s.ServeCodec(jsonrpc.NewServerCodec(conn))
	return nil
}

// methods are what a Client calls. Their shape is net/rpc's.
type methods struct {
	name string
	mu   sync.Mutex
	open map[string]bool
	seen []Seen
}

// maxSeen bounds the memory for attempts seen; the oldest are dropped.
const maxSeen = 1000

func (m *methods) saw(s Seen) Seen {
	s.Host = m.name
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.seen) == maxSeen {
		m.seen = m.seen[1:]
	}
	m.seen = append(m.seen, s)
	return s
}

func (m *methods) Ready(_ bool, out *bool) error { *out = true; return nil }

func (m *methods) Seen(token string, out *[]Seen) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	*out = []Seen{}
	for _, s := range m.seen {
		if s.Token == token {
			*out = append(*out, s)
		}
	}
	return nil
}

func (m *methods) Exec(e Exec, out *string) error {
	ctx, cancel := context.WithTimeout(context.Background(), e.Timeout)
	defer cancel()
	if len(e.Args) == 0 {
		return errors.New("no program given")
	}
	b, err := exec.CommandContext(ctx, e.Args[0], e.Args[1:]...).CombinedOutput()
	*out = string(b)
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", e.Args[0], err, b)
	}
	return nil
}

func (m *methods) Listen(all []Listen, out *bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, l := range all {
		key := l.Network + " " + l.Addr.String()
		if m.open[key] {
			continue
		}
		if err := m.listen(l); err != nil {
			return fmt.Errorf("listen on %s: %w", key, err)
		}
		m.open[key] = true
	}
	*out = true
	return nil
}

func (m *methods) listen(l Listen) error {
	switch l.Network {
	case "tcp":
		ln, err := net.Listen("tcp", l.Addr.String())
		if err != nil {
			return err
		}
		go Accept(ln, func(c *net.TCPConn) {
			c.SetDeadline(time.Now().Add(serverTimeout))
			if l.Kind == DNS {
				serveDNSConn(c, l.Answer)
			} else {
				m.converse(c, l.Kind == Banner)
			}
		})
		return nil
	case "udp":
		pc, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(l.Addr))
		if err != nil {
			return err
		}
		if l.Kind == DNS {
			go ServeDNS(pc, l.Answer, nil)
		} else {
			go m.echoUDP(pc)
		}
		return nil
	}
	return fmt.Errorf("network is %q, want tcp or udp", l.Network)
}

// Accept calls handle for each connection on a goroutine of its own, and closes the connection
// after that, until ln is closed.
func Accept(ln net.Listener, handle func(*net.TCPConn)) {
	for {
		c, err := ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		go func() {
			defer c.Close()
			handle(c.(*net.TCPConn))
		}()
	}
}

// ask is the first line of Echo, and all of it over udp.
type ask struct {
	Token string `json:"token"`
	Bytes int    `json:"bytes,omitempty"`
	Half  bool   `json:"half,omitempty"`
	Bulk  bool   `json:"bulk,omitempty"`
	// Timeout is how long the server may take, if longer than serverTimeout.
	Timeout time.Duration `json:"timeout,omitempty"`
}

// maxPayload bounds Dial.Bytes.
const maxPayload = 64 << 20

func (m *methods) converse(c *net.TCPConn, banner bool) {
	s := Seen{Peer: addrPort(c.RemoteAddr()), Local: addrPort(c.LocalAddr())}
	if banner {
		fmt.Fprintf(c, "lab banner of %s\n", m.name)
	}
	r := bufio.NewReader(c)
	if b, err := r.Peek(4); err != nil || string(b) == "GET " {
		m.answerHTTP(c, r, s)
		return
	}
	line, err := r.ReadBytes('\n')
	var a ask
	if err != nil || json.Unmarshal(line, &a) != nil || a.Bytes < 0 || !a.Bulk && a.Bytes > maxPayload {
		return
	}
	s.Token = a.Token
	s = m.saw(s)
	c.SetDeadline(time.Now().Add(max(a.Timeout, serverTimeout)))
	if a.Bulk {
		a.serveBulk(c, r, s)
		return
	}
	payload := make([]byte, a.Bytes)
	if _, err := io.ReadFull(r, payload); err != nil {
		return
	}
	if a.Half {
		if _, err := r.ReadByte(); err != io.EOF {
			return
		}
	}
	if json.NewEncoder(c).Encode(s) != nil {
		return
	}
	c.Write(payload)
	c.CloseWrite()
	io.Copy(io.Discard, r)
}

func (m *methods) answerHTTP(c *net.TCPConn, r *bufio.Reader, s Seen) {
	req, err := http.ReadRequest(r)
	if err != nil {
		return
	}
	s.Token = req.Header.Get(tokenHeader)
	b, _ := json.Marshal(m.saw(s))
	fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nServer: lab-%s\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s\n", m.name, len(b)+1, b)
}

func (m *methods) echoUDP(pc *net.UDPConn) {
	b := make([]byte, 2048)
	for {
		n, peer, err := pc.ReadFromUDPAddrPort(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		var a ask
		if err != nil || json.Unmarshal(b[:n], &a) != nil {
			continue
		}
		reply, _ := json.Marshal(m.saw(Seen{Token: a.Token, Peer: unmap(peer), Local: addrPort(pc.LocalAddr())}))
		pc.WriteToUDPAddrPort(reply, peer)
	}
}

func addrPort(a net.Addr) netip.AddrPort {
	switch a := a.(type) {
	case *net.TCPAddr:
		return unmap(a.AddrPort())
	case *net.UDPAddr:
		return unmap(a.AddrPort())
	}
	return netip.AddrPort{}
}

func unmap(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())
}

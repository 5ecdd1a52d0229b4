package agent

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"time"

	"github.com/meshvirt/meshvirt/test/e2e/netlab/packet"
)

// udpTries is how often a datagram, or an ICMP echo request, is sent within the time given: one may
// be lost while a neighbour is resolved.
const udpTries = 3

func (m *methods) Dial(d Dial, out *Dialed) error {
	err := errors.New("network is " + d.Network + ", want tcp or udp")
	switch d.Network {
	case "tcp":
		err = d.tcp(out)
	case "udp":
		err = d.udp(out)
	}
	out.OK = err == nil
	if err != nil {
		out.Err = err.Error()
	}
	return nil
}

func (d Dial) tcp(out *Dialed) error {
	deadline := time.Now().Add(d.Timeout)
	dialer, to := net.Dialer{Deadline: deadline}, d.To
	if d.Idle > 0 {
		dialer.KeepAliveConfig.Enable, dialer.KeepAlive = false, -1
	}
	if d.From.IsValid() {
		dialer.LocalAddr = &net.TCPAddr{IP: d.From.AsSlice()}
	}
	if d.Tunnel.IsValid() {
		to = d.Tunnel
	}
	conn, err := dialer.Dial("tcp", to.String())
	if err != nil {
		return err
	}
	defer conn.Close()
	c := conn.(*net.TCPConn)
	c.SetDeadline(deadline)
	out.Local = addrPort(c.LocalAddr())
	r := bufio.NewReader(c)
	if d.Tunnel.IsValid() {
		if err := connect(c, r, d.To); err != nil {
			return fmt.Errorf("tunnel: %w", err)
		}
	}
	switch d.Kind {
	case HTTP:
		return d.get(c, r, out)
	case Bulk:
		return d.bulk(c, r, out)
	case Banner:
		if line, err := r.ReadString('\n'); err != nil {
			return fmt.Errorf("read the server's banner %q: %w", line, err)
		}
	}
	line, err := json.Marshal(ask{Token: d.Token, Bytes: d.Bytes, Half: d.Half, Timeout: d.Timeout})
	if err != nil {
		return err
	}
	payload := pattern(d.Token, d.Bytes)
	// The server reads all before it answers: writing cannot block for ever.
	sent := append(append(line, '\n'), payload...)
	if d.Idle > 0 {
		half := len(sent) / 2
		if _, err := c.Write(sent[:half]); err != nil {
			return fmt.Errorf("send: %w", err)
		}
		time.Sleep(d.Idle)
		sent = sent[half:]
	}
	if _, err := c.Write(sent); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	if d.Half {
		if err := c.CloseWrite(); err != nil {
			return fmt.Errorf("close the sending direction: %w", err)
		}
	}
	line, err = r.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	if err := json.Unmarshal(line, &out.Seen); err != nil || out.Seen.Token != d.Token {
		return fmt.Errorf("the answer is %q, want one with token %s", line, d.Token)
	}
	back, err := io.ReadAll(r)
	if err != nil {
		return fmt.Errorf("read the payload back: %w", err)
	}
	if !bytes.Equal(back, payload) {
		return fmt.Errorf("%d bytes came back, want the %d sent", len(back), len(payload))
	}
	return nil
}

// connect asks the proxy at the other end for a tunnel.
func connect(c net.Conn, r *bufio.Reader, to netip.AddrPort) error {
	if _, err := fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", to, to); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	resp, err := http.ReadResponse(r, &http.Request{Method: http.MethodConnect})
	if err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("HTTP status %d", resp.StatusCode)
	}
	return nil
}

func (d Dial) get(c net.Conn, r *bufio.Reader, out *Dialed) error {
	path := d.Path
	if path == "" {
		path = "/"
	}
	req, err := http.NewRequest("GET", "http://"+d.To.String()+path, nil)
	if err != nil {
		return err
	}
	req.Header.Set(tokenHeader, d.Token)
	req.Close = true
	for k, v := range d.Header {
		if http.CanonicalHeaderKey(k) == "Host" {
			req.Host = v
		}
		req.Header.Set(k, v)
	}
	if err := req.Write(c); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	resp, err := http.ReadResponse(r, req)
	if err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
	if err != nil {
		return fmt.Errorf("read the answer's body: %w", err)
	}
	out.Status, out.Body = resp.StatusCode, string(b)
	// Servers other than an agent do not say what they saw.
	_ = json.Unmarshal(b, &out.Seen)
	return nil
}

// pattern is n bytes that differ from token to token.
func pattern(token string, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i>>8) ^ byte(i*7)
		if token != "" {
			b[i] ^= token[i%len(token)]
		}
	}
	return b
}

func (d Dial) udp(out *Dialed) error {
	c, err := net.Dial("udp", d.To.String())
	if err != nil {
		return err
	}
	defer c.Close()
	out.Local = addrPort(c.LocalAddr())
	msg, err := json.Marshal(ask{Token: d.Token})
	if err != nil {
		return err
	}
	b := make([]byte, 2048)
	return retry(c, msg, d.Timeout, func() error {
		n, err := c.Read(b)
		if err != nil {
			return err
		}
		if err := json.Unmarshal(b[:n], &out.Seen); err != nil || out.Seen.Token != d.Token {
			return fmt.Errorf("the answer is %q, want one with token %s", b[:n], d.Token)
		}
		return nil
	})
}

// retry sends msg up to udpTries times within the time given, until read gets an answer.
func retry(c net.Conn, msg []byte, timeout time.Duration, read func() error) error {
	var err error
	for range udpTries {
		c.SetDeadline(time.Now().Add(timeout / udpTries))
		if _, err = c.Write(msg); err != nil {
			return err
		}
		if err = read(); !errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
	}
	return err
}

func (m *methods) Ping(p Ping, out *bool) error {
	network, request, reply := "ip4:icmp", byte(8), byte(0)
	if p.To.Is6() {
		network, request, reply = "ip6:ipv6-icmp", 128, 129
	}
	conn, err := net.Dial(network, p.To.String())
	if err != nil {
		return err
	}
	defer conn.Close()
	c := conn.(*net.IPConn)
	id := uint16(os.Getpid()) ^ uint16(time.Now().UnixNano())
	msg := []byte{request, 0, 0, 0, byte(id >> 8), byte(id), 0, 1, 'l', 'a', 'b', '!'}
	if p.To.Is4() { // the kernel fills in the checksum of ICMPv6
		binary.BigEndian.PutUint16(msg[2:], packet.Checksum(msg))
	}
	b := make([]byte, 2048)
	err = retry(c, msg, p.Timeout, func() error {
		for {
			n, _, err := c.ReadFromIP(b) // without the IP header, unlike Read
			if err != nil {
				return err
			}
			if n >= 8 && b[0] == reply && binary.BigEndian.Uint16(b[4:]) == id {
				return nil
			}
		}
	})
	*out = err == nil
	return nil
}

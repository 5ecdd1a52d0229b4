package agent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// ServeDNS answers every question on pc, until it is closed: A questions with the address, others with
// an empty answer. It calls asked, if not nil, for each question before answering.
func ServeDNS(pc net.PacketConn, answer netip.Addr, asked func(peer netip.AddrPort)) {
	b := make([]byte, 4096)
	for {
		n, peer, err := pc.ReadFrom(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		reply, err := answerDNS(b[:n], answer)
		if err != nil {
			continue
		}
		if asked != nil {
			asked(addrPort(peer))
		}
		pc.WriteTo(reply, peer)
	}
}

// serveDNSConn answers questions over TCP until the client closes.
func serveDNSConn(c net.Conn, answer netip.Addr) {
	for {
		q, err := readDNS(c)
		if err != nil {
			return
		}
		reply, err := answerDNS(q, answer)
		if err != nil || writeDNS(c, reply) != nil {
			return
		}
	}
}

// ServeDNSListener is ServeDNS over TCP.
func ServeDNSListener(ln net.Listener, answer netip.Addr, asked func(peer netip.AddrPort)) {
	Accept(ln, func(c *net.TCPConn) {
		c.SetDeadline(time.Now().Add(serverTimeout))
		if asked != nil {
			asked(addrPort(c.RemoteAddr()))
		}
		serveDNSConn(c, answer)
	})
}

func answerDNS(q []byte, answer netip.Addr) ([]byte, error) {
	var p dnsmessage.Parser
	h, err := p.Start(q)
	if err != nil {
		return nil, err
	}
	questions, err := p.AllQuestions()
	if err != nil || h.Response || len(questions) != 1 {
		return nil, fmt.Errorf("want a query with one question")
	}
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: h.ID, Response: true, RecursionDesired: h.RecursionDesired, RecursionAvailable: true},
		Questions: questions,
	}
	if questions[0].Type == dnsmessage.TypeA {
		m.Answers = []dnsmessage.Resource{{
			Header: dnsmessage.ResourceHeader{Name: questions[0].Name, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET, TTL: 5},
			Body:   &dnsmessage.AResource{A: answer.As4()},
		}}
	}
	return m.Pack()
}

func (m *methods) Resolve(r Resolve, out *Resolved) error {
	if err := r.ask(out); err != nil {
		out.Err = err.Error()
	}
	return nil
}

func (r Resolve) ask(out *Resolved) error {
	name, err := dnsmessage.NewName(strings.TrimSuffix(r.Name, ".") + ".")
	if err != nil {
		return err
	}
	id := uint16(time.Now().UnixNano())
	q := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: id, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: name, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}},
	}
	msg, err := q.Pack()
	if err != nil {
		return err
	}
	deadline := time.Now().Add(r.Timeout)
	c, err := (&net.Dialer{Deadline: deadline}).Dial(r.Network, r.Server.String())
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(deadline)
	out.Local = addrPort(c.LocalAddr())
	var reply []byte
	if r.Network == "tcp" {
		if err := writeDNS(c, msg); err != nil {
			return err
		}
		if reply, err = readDNS(c); err != nil {
			return err
		}
	} else {
		b := make([]byte, 4096)
		if err := retry(c, msg, r.Timeout, func() error {
			n, err := c.Read(b)
			reply = b[:n]
			return err
		}); err != nil {
			return err
		}
	}
	var a dnsmessage.Message
	if err := a.Unpack(reply); err != nil {
		return err
	}
	if a.ID != id || !a.Response || a.RCode != dnsmessage.RCodeSuccess {
		return fmt.Errorf("the answer has id %d and code %s, want %d and success", a.ID, a.RCode, id)
	}
	for _, rr := range a.Answers {
		if body, ok := rr.Body.(*dnsmessage.AResource); ok {
			out.Addrs = append(out.Addrs, netip.AddrFrom4(body.A))
		}
	}
	return nil
}

// Over TCP a message follows its length (RFC 1035, 4.2.2).

func readDNS(r io.Reader) ([]byte, error) {
	var n [2]byte
	if _, err := io.ReadFull(r, n[:]); err != nil {
		return nil, err
	}
	b := make([]byte, binary.BigEndian.Uint16(n[:]))
	_, err := io.ReadFull(r, b)
	return b, err
}

func writeDNS(w io.Writer, b []byte) error {
	_, err := w.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...))
	return err
}

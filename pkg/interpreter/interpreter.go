// Package interpreter runs rules as nf_tables does: a chain's own netlink expressions, one after the other, on a packet
// and what the kernel knows of its connection and of the network. It knows nothing of the pod that the rules are for, and
// what it does not know of the language is an error rather than a guess. It is pure.
package interpreter

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/meshvirt/meshvirt/pkg/nft"
)

// A verdict is how a chain goes on behind a rule.
type verdict int

const (
	next   verdict = iota // the rule matched, the chain goes on
	broken                // the rule did not match
	jumped
	accepted
	dropped
)

// A Match is a rule that matched: the chain that it is in, what it does besides matching, and why it is there.
type Match struct{ Chain, Action, Why string }

// Run has a chain of the table, and those that it jumps to, look at a packet, and changes the packet as they say. It
// gives the rules that matched, in order, and whether one dropped the packet. It fails if a rule holds something that
// is not known here.
func Run(table nft.Ruleset, net Network, c *nft.Chain, p *Packet) (matched []Match, drop bool, err error) {
	m := machine{table: table, net: net, nat: c.Base != nil && c.Base.NAT}
	matched, v, err := m.call(c, p)
	return matched, v == dropped, err
}

// A machine has registers, which each rule begins anew. It runs the rule's expressions one after the other, until one
// breaks off the rule.
type machine struct {
	table  nft.Ruleset
	net    Network
	nat    bool // whether the chain that the kernel called is of type nat
	regs   map[uint32][]byte
	target *nft.Chain // the chain to jump to
}

// call runs a chain.
func (m *machine) call(c *nft.Chain, p *Packet) (matched []Match, v verdict, err error) {
	for _, r := range c.Rules {
		m.regs = map[uint32][]byte{}
		v := next
		for _, e := range r.Exprs() {
			if v, err = m.run(e, p); err != nil {
				return matched, v, fmt.Errorf("chain %s: rule %q: %w", c.Name, r.Text(), err)
			}
			if v != next {
				break
			}
		}
		if v == broken {
			continue
		}
		matched = append(matched, Match{Chain: c.Name, Action: r.Action(), Why: r.Why})
		if v == jumped {
			var more []Match
			if more, v, err = m.call(m.target, p); err != nil {
				return matched, v, err
			}
			matched = append(matched, more...)
		}
		if v != next {
			return matched, v, nil
		}
	}
	return matched, next, nil
}

// run is one expression.
func (m *machine) run(e expr.Any, p *Packet) (verdict, error) {
	switch e := e.(type) {
	case *expr.Meta:
		return m.meta(e, p)
	case *expr.Ct:
		return m.ct(e, p)
	case *expr.Payload:
		header := p.network()
		if e.Base == expr.PayloadBaseTransportHeader {
			header = p.transport()
		}
		if e.DestRegister == 0 || int(e.Offset+e.Len) > len(header) {
			return broken, fmt.Errorf("payload %+v: no such bytes are known of a packet of protocol %d", *e, p.Proto)
		}
		m.regs[e.DestRegister] = header[e.Offset : e.Offset+e.Len]
	case *expr.Fib:
		return m.fib(e, p)
	case *expr.Immediate:
		m.regs[e.Register] = e.Data
	case *expr.Bitwise:
		if len(m.regs[e.SourceRegister]) != int(e.Len) || len(e.Mask) != int(e.Len) || len(e.Xor) != int(e.Len) {
			return broken, fmt.Errorf("bitwise %+v of %d bytes", *e, len(m.regs[e.SourceRegister]))
		}
		out := make([]byte, e.Len)
		for i, b := range m.regs[e.SourceRegister] {
			out[i] = b&e.Mask[i] ^ e.Xor[i]
		}
		m.regs[e.DestRegister] = out
	case *expr.Cmp:
		equal := bytes.Equal(m.regs[e.Register], e.Data)
		if e.Op != expr.CmpOpEq && e.Op != expr.CmpOpNeq {
			return broken, fmt.Errorf("comparison %d is not known", e.Op)
		}
		return match(equal == (e.Op == expr.CmpOpEq)), nil
	case *expr.Lookup:
		member, known := m.table.Contains(e.SetName, m.regs[e.SourceRegister])
		if !known {
			return broken, fmt.Errorf("there is no set %s", e.SetName)
		}
		return match(member != e.Invert), nil
	case *expr.Counter:
	case *expr.Verdict:
		switch e.Kind {
		case expr.VerdictAccept:
			return accepted, nil
		case expr.VerdictDrop:
			return dropped, nil
		case expr.VerdictJump:
			i := slices.IndexFunc(m.table.Chains(), func(c *nft.Chain) bool { return c.Name == e.Chain })
			if i < 0 {
				return broken, fmt.Errorf("there is no chain %s", e.Chain)
			}
			m.target = m.table.Chains()[i]
			return jumped, nil
		}
		return broken, fmt.Errorf("verdict %d is not known", e.Kind)
	case *expr.NAT, *expr.Redir, *expr.Masq:
		return m.translate(e, p)
	case *expr.TProxy:
		if m.nat || !m.ofFamily(uint32(e.Family), p) || p.Proto != unix.IPPROTO_TCP {
			return broken, nil
		}
		p.Socket = binary.BigEndian.Uint16(m.regs[e.RegPort])
	default:
		return broken, fmt.Errorf("expression %T is not known", e)
	}
	return next, nil
}

func match(yes bool) verdict {
	if yes {
		return next
	}
	return broken
}

func (m *machine) ofFamily(nfproto uint32, p *Packet) bool {
	return (nfproto == unix.NFPROTO_IPV6) == p.IPv6()
}

func (m *machine) meta(e *expr.Meta, p *Packet) (verdict, error) {
	if e.SourceRegister {
		if e.Key != expr.MetaKeyMARK {
			return broken, fmt.Errorf("meta key %d cannot be set", e.Key)
		}
		p.Mark = binary.NativeEndian.Uint32(m.regs[e.Register])
		return next, nil
	}
	var value []byte
	switch e.Key {
	case expr.MetaKeyIIFNAME:
		value = name(p.In)
	case expr.MetaKeyOIFNAME:
		value = name(p.Out)
	case expr.MetaKeyNFPROTO:
		value = []byte{unix.NFPROTO_IPV4}
		if p.IPv6() {
			value = []byte{unix.NFPROTO_IPV6}
		}
	case expr.MetaKeyL4PROTO:
		value = []byte{p.Proto}
	case expr.MetaKeyMARK:
		value = host32(p.Mark)
	case expr.MetaKeySKUID, expr.MetaKeySKGID:
		if p.Owner == nil {
			return broken, nil
		}
		value = host32(p.Owner.UID)
		if e.Key == expr.MetaKeySKGID {
			value = host32(p.Owner.GID)
		}
	default:
		return broken, fmt.Errorf("meta key %d is not known", e.Key)
	}
	m.regs[e.Register] = value
	return next, nil
}

// ct asks about the connection. Before it is tracked only its state is known, and that is invalid.
func (m *machine) ct(e *expr.Ct, p *Packet) (verdict, error) {
	if e.SourceRegister {
		switch {
		case e.Key == expr.CtKeyMARK && p.Conn != nil:
			p.Conn.Mark = binary.NativeEndian.Uint32(m.regs[e.Register])
		case e.Key == expr.CtKeyMARK:
		case e.Key == expr.CtKeyZONE && p.Conn == nil:
			p.Conn = &Conn{Zone: binary.NativeEndian.Uint16(m.regs[e.Register])} // a template for the connection
		default:
			return broken, fmt.Errorf("ct key %d cannot be set here", e.Key)
		}
		return next, nil
	}
	tracked := p.Conn != nil && p.Conn.Dst.IsValid()
	switch {
	case e.Key == expr.CtKeySTATE && !tracked:
		m.regs[e.Register] = host32(expr.CtStateBitINVALID)
	case e.Key == expr.CtKeySTATE:
		m.regs[e.Register] = host32(p.State)
	case !tracked:
		return broken, nil
	case e.Key == expr.CtKeyMARK:
		m.regs[e.Register] = host32(p.Conn.Mark)
	case e.Key == expr.CtKeyDIRECTION && p.Reply:
		m.regs[e.Register] = []byte{1}
	case e.Key == expr.CtKeyDIRECTION:
		m.regs[e.Register] = []byte{0}
	default:
		return broken, fmt.Errorf("ct key %d is not known", e.Key)
	}
	return next, nil
}

func (m *machine) fib(e *expr.Fib, p *Packet) (verdict, error) {
	link := ""
	if e.FlagIIF {
		link = p.In
	}
	switch {
	case e.ResultADDRTYPE && e.FlagDADDR && !e.FlagSADDR:
		m.regs[e.Register] = host32(m.net.kind(p.Dst.Addr(), link))
	case e.ResultOIF && e.FlagSADDR && e.FlagIIF && e.FlagPRESENT:
		m.regs[e.Register] = []byte{0, 0, 0, 0}
		if m.net.wayBack(p.Src.Addr(), link) {
			m.regs[e.Register] = host32(1)
		}
	default:
		return broken, fmt.Errorf("fib %+v is not known", *e)
	}
	return next, nil
}

// translate sets up a translation, which ends the walk through the nat chains. One of the other family
// is passed by.
func (m *machine) translate(e expr.Any, p *Packet) (verdict, error) {
	if !m.nat {
		return broken, fmt.Errorf("%T outside of a nat chain", e)
	}
	switch e := e.(type) {
	case *expr.NAT:
		if !m.ofFamily(e.Family, p) {
			return next, nil
		}
		a, ok := netip.AddrFromSlice(m.regs[e.RegAddrMin])
		if !ok || e.Type != expr.NATTypeDestNAT {
			return broken, fmt.Errorf("nat %+v is not known", *e)
		}
		to := netip.AddrPortFrom(a, p.Dst.Port())
		if e.RegProtoMin != 0 {
			to = netip.AddrPortFrom(a, binary.BigEndian.Uint16(m.regs[e.RegProtoMin]))
		}
		p.DNAT(to)
	case *expr.Redir:
		p.DNAT(netip.AddrPortFrom(m.net.Here(p), binary.BigEndian.Uint16(m.regs[e.RegisterProtoMin])))
	case *expr.Masq:
		p.SNAT(m.net.Link(p.Out).Source(p.Src.Addr()))
	}
	return accepted, nil
}

func host32(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

func name(s string) []byte {
	key := make([]byte, unix.IFNAMSIZ)
	copy(key, s)
	return key
}

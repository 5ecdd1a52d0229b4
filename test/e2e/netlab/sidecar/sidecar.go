// Package sidecar stands in for a mesh's proxy, Envoy with Istio's agent or the ambient mesh's ztunnel:
// the same ports, the same way of dialling, and a record of every connection that passed. It has no
// policy and no TLS.
package sidecar

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meshvirt/meshvirt/test/e2e/netlab/agent"
)

// User and group of Istio's proxy container.
const (
	UID = 1337
	GID = 1337
)

// Istio's ports.
const (
	Admin      = 15000 // Envoy's, on the loopback address
	Outbound   = 15001
	Inbound    = 15006
	HBONE      = 15008
	Agent      = 15020
	Health     = 15021
	DNSPort    = 15053 // on the loopback address
	Prometheus = 15090
)

// DNSAnswer is the address that the stand-in gives for every name, so that a captured query shows.
var DNSAnswer = netip.MustParseAddr("192.0.2.153")

// Direction tells which of the sidecar's listeners took a connection.
type Direction string

// The directions. Outbound, inbound and tunnelled connections are passed on, the others end in the proxy.
const (
	Out     Direction = "outbound"
	In      Direction = "inbound"
	Tunnel  Direction = "tunnel" // inbound too, in a tunnel between the proxies (HBONE, ztunnel only)
	DNS     Direction = "dns"
	Serving Direction = "serving" // health, metrics, admin, HBONE
)

// Event is a connection, or for DNS a query, that the sidecar took.
type Event struct {
	Order     int            `json:"order"` // from 1, in which connections were taken
	Direction Direction      `json:"direction"`
	Port      uint16         `json:"port"`              // the listener's
	Peer      netip.AddrPort `json:"peer"`              // who connected
	Original  netip.AddrPort `json:"original,omitzero"` // the destination before redirection
	Local     netip.AddrPort `json:"local,omitzero"`    // the sidecar's end of the connection onwards
	Err       string         `json:"err,omitempty"`     // why it was not passed on
	Synced    int            `json:"synced,omitempty"`  // no connection, but the answer to a line read
}

// dialTimeout bounds how long the sidecar tries to reach a destination.
const dialTimeout = 2 * time.Second

// Config chooses the shape of the stand-in.
type Config struct {
	// IPv6 makes it listen on IPv6 too, as Envoy does in a dual-stack mesh and in no other.
	IPv6 bool
	// IPv6Only makes it listen on IPv6 alone, as Envoy and its agent do in a pod that has nothing else.
	IPv6Only bool
	// DNS makes it serve DNS on port 15053, as Istio's agent does with DNS capture.
	DNS bool
	// Transparent is how Envoy does it where inbound connections are intercepted by TPROXY, and ztunnel in a pod
	// of its own, where all are. It then needs CAP_NET_ADMIN.
	Transparent bool
	// Quiet makes it tell of no connection: telling costs more than passing one on, and would be what
	// a benchmark measures.
	Quiet bool
	// UID and GID are the sidecar's user and group, OutboundPort and InboundPort are where it takes redirected
	// connections. Zero means Istio's: 1337, the user's, 15001 and 15006.
	UID, GID                  uint32
	OutboundPort, InboundPort uint16
}

type server struct {
	mu    sync.Mutex
	taken int
	quiet bool
	log   *json.Encoder
}

// take tells of a connection that was just taken. More may be told of it later.
func (s *server) take(d Direction, port uint16, peer, original netip.AddrPort) Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.taken++
	e := Event{Order: s.taken, Direction: d, Port: port, Peer: peer, Original: original}
	s.tell(e)
	return e
}

// WithDefaults gives zero values their meaning.
func (c Config) WithDefaults() Config {
	c.UID, c.GID = cmp.Or(c.UID, UID), cmp.Or(c.GID, c.UID, UID)
	c.OutboundPort, c.InboundPort = cmp.Or(c.OutboundPort, Outbound), cmp.Or(c.InboundPort, Inbound)
	return c
}

// Run serves until in ends. It writes events to out as JSON lines, and answers each line of in, a
// number, with an event that has it in Synced: all events before have been written by then.
func Run(cfg Config, in io.Reader, out io.Writer) error {
	s := &server{log: json.NewEncoder(out), quiet: cfg.Quiet}
	cfg = cfg.WithDefaults()
	any, loopback := []string{"0.0.0.0"}, []string{"127.0.0.1"}
	switch {
	case cfg.IPv6Only:
		any, loopback = []string{"::"}, []string{"::1"}
	case cfg.IPv6:
		any, loopback = append(any, "::"), append(loopback, "::1")
	}
	inbound, options := s.inbound, net.ListenConfig{}
	if cfg.Transparent {
		inbound, options.Control = s.transparent(In), control(transparent)
	}
	for _, l := range []struct {
		port   uint16
		on     []string
		handle func(uint16, *net.TCPConn)
	}{
		{cfg.OutboundPort, any, s.outbound},
		{cfg.InboundPort, any, inbound},
		{HBONE, any, s.serve},
		{Agent, any, s.agent},
		{Health, any, s.serve},
		{Prometheus, any, s.serve},
		{Admin, loopback, s.serve},
	} {
		for _, addr := range l.on {
			by := net.ListenConfig{}
			if l.port == cfg.InboundPort {
				by = options
			}
			ln, err := listen(by, addr, l.port)
			if err != nil {
				return err
			}
			go agent.Accept(ln, func(c *net.TCPConn) { l.handle(l.port, c) })
		}
	}
	if cfg.DNS {
		for _, addr := range loopback {
			if err := s.serveDNS(addr, net.ListenConfig{}); err != nil {
				return err
			}
		}
	}
	return s.sync(in)
}

// sync answers each line of in, a number, until in ends.
func (s *server) sync(in io.Reader) error {
	for r := bufio.NewScanner(in); r.Scan(); {
		var n int
		if _, err := fmt.Sscan(r.Text(), &n); err != nil {
			return fmt.Errorf("read a number to answer: %w", err)
		}
		s.event(Event{Synced: n})
	}
	return nil
}

// listen keeps the families apart: with one socket for both an IPv4 peer's original destination
// would have to be asked of an IPv6 socket.
func listen(by net.ListenConfig, addr string, port uint16) (net.Listener, error) {
	return by.Listen(context.Background(), network("tcp", addr), net.JoinHostPort(addr, fmt.Sprint(port)))
}

// network is that of one family, such as tcp4.
func network(proto, addr string) string {
	if strings.Contains(addr, ":") {
		return proto + "6"
	}
	return proto + "4"
}

func (s *server) event(e Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tell(e)
}

// tell is called with mu held. Answers to lines read are told always.
func (s *server) tell(e Event) {
	if !s.quiet || e.Synced != 0 {
		s.log.Encode(e)
	}
}

// outbound passes a connection on to its original destination, as an Envoy does that has no other
// route for it (PassthroughCluster).
func (s *server) outbound(port uint16, c *net.TCPConn) {
	s.pass(Out, port, c, net.Dialer{})
}

// inbound passes a connection on to the pod's own address from Envoy's marked source (Istio's
// InboundPassthroughCluster and inbound clusters), which the redirection lets through.
func (s *server) inbound(port uint16, c *net.TCPConn) {
	s.pass(In, port, c, net.Dialer{LocalAddr: marked(c)})
}

// marked is Envoy's source, and its agent's, towards the application.
func marked(c *net.TCPConn) *net.TCPAddr {
	if remote(c).Addr().Is6() {
		return &net.TCPAddr{IP: net.ParseIP("::6")}
	}
	return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 6)}
}

// transparent passes a connection on to where its socket says that it was called, from the client's own
// address (Envoy's filter original_src, with the mark that Istio gives it).
func (s *server) transparent(d Direction) func(uint16, *net.TCPConn) {
	return func(port uint16, c *net.TCPConn) {
		var err error
		if local(c).Port() == port {
			err = errors.New("was not intercepted but dialled directly")
		}
		s.relay(s.take(d, port, remote(c), local(c)), c, as(c), err, "")
	}
}

// pass passes c on to its original destination.
func (s *server) pass(d Direction, port uint16, c *net.TCPConn, by net.Dialer) {
	original, err := originalDestination(c)
	switch {
	case err != nil:
		err = fmt.Errorf("original destination: %w", err)
	case original == local(c):
		err = errors.New("was not redirected but dialled directly")
	}
	s.relay(s.take(d, port, remote(c), original), c, by, err, "")
}

// relay connects c, of which e tells, with e's original destination, unless there is an error already.
// The client is sent a greeting first.
func (s *server) relay(e Event, c *net.TCPConn, by net.Dialer, err error, greeting string) {
	var up *net.TCPConn
	if err == nil {
		up, err = dial(e.Original, by)
	}
	if err != nil {
		e.Err = err.Error()
		s.event(e)
		return
	}
	defer up.Close()
	e.Local = local(up)
	s.event(e)
	if _, err := io.WriteString(c, greeting); err != nil {
		return
	}
	done := make(chan struct{})
	go func() {
		copyHalf(up, c)
		close(done)
	}()
	copyHalf(c, up)
	<-done
}

func dial(to netip.AddrPort, by net.Dialer) (*net.TCPConn, error) {
	by.Timeout = dialTimeout
	c, err := by.Dial("tcp", to.String())
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

// copyHalf copies one direction to its end. After an error rather than an end there is no use for
// the other direction.
func copyHalf(dst, src *net.TCPConn) {
	if _, err := io.Copy(dst, src); err != nil {
		dst.Close()
		src.Close()
		return
	}
	dst.CloseWrite()
}

func remote(c *net.TCPConn) netip.AddrPort { return unmap(c.RemoteAddr()) }
func local(c *net.TCPConn) netip.AddrPort  { return unmap(c.LocalAddr()) }

func unmap(a net.Addr) netip.AddrPort {
	ap := a.(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// soOriginalDst is SO_ORIGINAL_DST and IP6T_SO_ORIGINAL_DST (linux/netfilter_ipv4.h, _ipv6/ip6_tables.h).
const soOriginalDst = 80

// originalDestination asks connection tracking where c was going before it was redirected.
func originalDestination(c *net.TCPConn) (netip.AddrPort, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return netip.AddrPort{}, err
	}
	var ap netip.AddrPort
	control := func(fd uintptr) {
		if remote(c).Addr().Is4() {
			// The kernel's struct sockaddr_in is as long as IPv6Mreq's first part: family, port, address.
			var m *unix.IPv6Mreq
			if m, err = unix.GetsockoptIPv6Mreq(int(fd), unix.SOL_IP, soOriginalDst); err == nil {
				b := m.Multiaddr
				ap = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), uint16(b[2])<<8|uint16(b[3]))
			}
			return
		}
		// Likewise IPv6MTUInfo begins with a struct sockaddr_in6.
		var m *unix.IPv6MTUInfo
		if m, err = unix.GetsockoptIPv6MTUInfo(int(fd), syscall.SOL_IPV6, soOriginalDst); err == nil {
			ap = netip.AddrPortFrom(netip.AddrFrom16(m.Addr.Addr), m.Addr.Port<<8|m.Addr.Port>>8)
		}
	}
	if cerr := raw.Control(control); cerr != nil {
		return ap, cerr
	}
	return ap, err
}

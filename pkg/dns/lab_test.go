package dns

import (
	"errors"
	"fmt"
	"net"
	"net/http/httptest"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/meshvirt/meshvirt/test/lab"
)

// The tests run in a network namespace of their own with one host: it has the addresses of the guest and of its
// gateway, where the forwarder is asked, and those of the servers. That rules bring the guest's queries there, and
// that a mesh takes what goes on, pkg/rules and test/e2e/netlab show.
const network = `
	ip link set lo up
	ip link add other type veth peer name unused
	ip link set other up
	for a in 10.0.2.1 10.0.2.9 10.0.2.2 10.0.2.3 10.96.0.10 10.96.0.11; do ip addr add $a/32 dev lo; done
	for a in fd10:0:2::1 fd10:0:2::9 fd10:0:2::2 fd00:10:96::a; do ip addr add $a/128 dev lo nodad; done`

var (
	guest4, guest6   = netip.MustParseAddr("10.0.2.2"), netip.MustParseAddr("fd10:0:2::2")
	gate4, gate6     = netip.MustParseAddr("10.0.2.1"), netip.MustParseAddr("fd10:0:2::1")
	server4, server6 = netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fd00:10:96::a")
	other4           = netip.MustParseAddr("10.96.0.11")
)

const port = 15253

func TestMain(m *testing.M) {
	lab.Enter(network)
	for _, a := range []netip.Addr{guest6, gate6, netip.MustParseAddr("fd10:0:2::9"), server6} {
		if err := awaitAddress(a); err != nil {
			fmt.Fprintln(os.Stderr, "build the network:", err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// awaitAddress waits until a datagram to an IPv6 address arrives, which it does not before a worker of the kernel's
// has looked at the address.
func awaitAddress(a netip.Addr) error {
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 0)))
	if err != nil {
		return err
	}
	defer c.Close()
	for range 600 {
		c.SetDeadline(time.Now().Add(50 * time.Millisecond))
		if _, err = c.WriteTo([]byte("?"), c.LocalAddr()); err == nil {
			_, _, err = c.ReadFrom(make([]byte, 1))
		}
		if err == nil {
			return nil
		}
	}
	return fmt.Errorf("%s does not work: %w", a, err)
}

// running is a forwarder at work.
type running struct {
	*Forwarder
	t       *testing.T
	metrics *prometheus.Registry
	ended   chan error
}

// start runs a forwarder until the test ends. Without servers it asks server4.
func start(t *testing.T, cfg Config) *running {
	t.Helper()
	r := &running{t: t, metrics: prometheus.NewRegistry(), ended: make(chan error, 1)}
	cfg.Port, cfg.Metrics = port, r.metrics
	if cfg.Guest == nil {
		cfg.Guest = []netip.Addr{guest4, guest6}
	}
	if cfg.Servers == nil {
		cfg.Servers = []netip.Addr{server4}
	}
	var err error
	if r.Forwarder, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	go func() { r.ended <- r.Run() }()
	t.Cleanup(func() {
		r.Stop(0)
		if err := r.wait(); err != nil {
			t.Errorf("run: %v", err)
		}
	})
	return r
}

// wait returns what Run returned. It may be called again.
func (r *running) wait() error {
	select {
	case err := <-r.ended:
		r.ended <- err
		return err
	case <-time.After(time.Minute):
		return errors.New("the forwarder does not end")
	}
}

// metric reads a series, named without its prefix; reason is that of dropped_total.
func (r *running) metric(name string, reason Reason) int {
	r.t.Helper()
	w := httptest.NewRecorder()
	promhttp.HandlerFor(r.metrics, promhttp.HandlerOpts{}).ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
	if reason != "" {
		name += fmt.Sprintf("{reason=%q}", reason)
	}
	return lab.Metric(r.t, w.Body.String(), "meshvirt_proxy_dns_"+name)
}

func (r *running) wantMetric(name string, reason Reason, want int) {
	r.t.Helper()
	lab.Await(r.t, fmt.Sprintf("%s %s be %d, but %d", name, reason, want, r.metric(name, reason)), func() bool { return r.metric(name, reason) == want })
}

// udpSocket is a UDP socket bound to an address, of the kernel's port if that is 0.
func udpSocket(t *testing.T, at netip.AddrPort) *net.UDPConn {
	t.Helper()
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(time.Minute))
	return c
}

// testClient is a socket of the guest's, whose queries go to one address of the gateway.
type testClient struct {
	*net.UDPConn
	t  *testing.T
	to netip.AddrPort
}

func ask(t *testing.T, guest, gate netip.Addr) testClient {
	t.Helper()
	return testClient{udpSocket(t, netip.AddrPortFrom(guest, 0)), t, netip.AddrPortFrom(gate, port)}
}

func (c testClient) send(query string) {
	c.t.Helper()
	if _, err := c.WriteToUDPAddrPort([]byte(query), c.to); err != nil {
		c.t.Fatal(err)
	}
}

// receive gives the next answer, which must come from where the query went.
func (c testClient) receive() string {
	c.t.Helper()
	b := make([]byte, 1<<16)
	n, from, err := c.ReadFromUDPAddrPort(b)
	if err != nil {
		c.t.Fatalf("no answer: %v", err)
	}
	if from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port()); from != c.to {
		c.t.Errorf("the answer came from %s, want %s", from, c.to)
	}
	return string(b[:n])
}

// A server tells of what it was asked, and answers when it is told to.
type server struct {
	*net.UDPConn
	t *testing.T
}

func serve(t *testing.T, at netip.Addr) server {
	t.Helper()
	return server{udpSocket(t, netip.AddrPortFrom(at, 53)), t}
}

// next is the next query, and who asked.
func (s server) next() (query string, from netip.AddrPort) {
	s.t.Helper()
	b := make([]byte, 1<<16)
	n, from, err := s.ReadFromUDPAddrPort(b)
	if err != nil {
		s.t.Fatalf("no query: %v", err)
	}
	return string(b[:n]), from
}

func (s server) answer(text string, to netip.AddrPort) {
	s.t.Helper()
	if _, err := s.WriteToUDPAddrPort([]byte(text), to); err != nil {
		s.t.Fatal(err)
	}
}

// echo answers every query with itself.
func (s server) echo() {
	b := make([]byte, 1<<16)
	for {
		n, from, err := s.ReadFromUDPAddrPort(b)
		if err != nil {
			return
		}
		s.WriteToUDPAddrPort(b[:n], from)
	}
}

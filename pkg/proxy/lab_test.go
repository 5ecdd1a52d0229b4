package proxy

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meshvirt/meshvirt/test/lab"
)

// The lab is a pod between a guest and the world:
//
//	guest 10.0.2.2 ── k6t-eth0 10.0.2.1 [pod] eth0 10.244.1.10 ── 10.244.1.1 world 192.0.2.10
//
// The test process itself is in the pod's network namespace, a fresh one without a name. The other
// two have no name either: all vanish with the process, and any number of labs run side by side.
var (
	pod, guest, world host

	pod4, pod6     = netip.MustParseAddr("10.244.1.10"), netip.MustParseAddr("fd00:10:244:1::10")
	gate4, gate6   = netip.MustParseAddr("10.0.2.1"), netip.MustParseAddr("fd10:0:2::1")
	guest4, guest6 = netip.MustParseAddr("10.0.2.2"), netip.MustParseAddr("fd10:0:2::2")
	world4, world6 = netip.MustParseAddr("192.0.2.10"), netip.MustParseAddr("2001:db8::10")
	mesh4, mesh6   = netip.MustParseAddr("127.0.0.6"), netip.MustParseAddr("::6")
)

const outPort, inPort, statPort, dnsPort = 15201, 15202, 15203, 15253

// rules are the part of the nat-proxy ruleset that the relay cannot do without.
const rules = `table inet meshvirt
delete table inet meshvirt
table inet meshvirt {
	chain pre {
		type nat hook prerouting priority -101
		iifname "k6t-eth0" meta l4proto tcp redirect to :15201
		iifname "k6t-eth0" ip daddr 192.0.2.10 udp dport 53 redirect to :15253
		iifname "k6t-eth0" ip6 daddr 2001:db8::10 udp dport 53 redirect to :15254
	}
	chain out {
		type nat hook output priority -101
		oifname "lo" ip saddr 127.0.0.6 meta l4proto tcp redirect to :15202
		oifname "lo" ip6 saddr ::6 meta l4proto tcp redirect to :15202
	}
}`

func TestMain(m *testing.M) {
	if name := os.Getenv(benchMarker); name != "" {
		fmt.Fprintln(os.Stderr, benchRelay(name))
		os.Exit(1)
	}
	lab.Enter("")
	if err := build(); err != nil {
		fmt.Fprintln(os.Stderr, "build the lab (want root, ip and nft):", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func build() (err error) {
	if pod.fd, err = unix.Open("/proc/thread-self/ns/net", unix.O_CLOEXEC, 0); err != nil {
		return err
	}
	for _, h := range []*host{&guest, &world} {
		if err := h.create(); err != nil {
			return err
		}
	}
	return errors.Join(
		pod.run(fmt.Sprintf(`
			ip link set lo up
			ip addr add ::6/128 dev lo
			ip link add k6t-eth0 type veth peer name eth0 netns /proc/%[1]d/fd/%[2]d
			ip link add eth0 type veth peer name eth0 netns /proc/%[1]d/fd/%[3]d
			ip addr add 10.0.2.1/24 dev k6t-eth0
			ip addr add fd10:0:2::1/120 dev k6t-eth0 nodad
			ip addr add 10.244.1.10/24 dev eth0
			ip addr add 10.244.1.11/24 dev eth0
			ip addr add fd00:10:244:1::10/64 dev eth0 nodad
			ip link set k6t-eth0 up
			ip link set eth0 up
			ip route add default via 10.244.1.1
			ip -6 route add default via fd00:10:244:1::1
			ip route add unreachable 192.0.2.99
			echo 1 > /proc/sys/net/ipv4/conf/k6t-eth0/route_localnet
			echo 1 > /proc/sys/net/ipv4/tcp_tw_reuse`, os.Getpid(), guest.fd, world.fd)),
		// A guest without a loopback device of its own, that sends 127.0.0.1 out.
		guest.run(`
			ip addr add 10.0.2.2/24 dev eth0
			ip addr add fd10:0:2::2/120 dev eth0 nodad
			ip link set eth0 up
			ip route add default via 10.0.2.1
			ip -6 route add default via fd10:0:2::1
			ip route add 127.0.0.1 via 10.0.2.1
			echo 1 > /proc/sys/net/ipv4/conf/eth0/route_localnet`),
		world.run(`
			ip link set lo up
			ip addr add 192.0.2.10/32 dev lo
			ip addr add 2001:db8::10/128 dev lo nodad
			ip addr add 10.244.1.1/24 dev eth0
			ip addr add fd00:10:244:1::1/64 dev eth0 nodad
			ip link set eth0 up`),
		pod.nft(rules))
}

// A host is a network namespace.
type host struct{ fd int }

func (h *host) create() error {
	return onThread(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		h.fd, err = unix.Open("/proc/thread-self/ns/net", 0, 0) // ip needs to see it
		return err
	})
}

// do runs f on a thread in h. Sockets and processes that f makes stay there.
func (h host) do(f func() error) error {
	return onThread(func() error {
		if err := unix.Setns(h.fd, unix.CLONE_NEWNET); err != nil {
			return err
		}
		return f()
	})
}

// onThread runs f on a thread of its own, in the pod before and after.
func onThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := f()
		if back := unix.Setns(pod.fd, unix.CLONE_NEWNET); back == nil {
			runtime.UnlockOSThread() // else the thread ends with the goroutine
		}
		done <- err
	}()
	return <-done
}

// run executes a shell script in h.
func (h host) run(script string) error { return h.exec(script, "sh", "-e") }

// nft loads a ruleset in h.
func (h host) nft(ruleset string) error { return h.exec(ruleset, "nft", "-f", "-") }

func (h host) exec(stdin, name string, args ...string) error {
	return h.do(func() error {
		cmd := exec.Command(name, args...)
		cmd.Stdin = strings.NewReader(stdin)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s\n%s", name, err, out, stdin)
		}
		return nil
	})
}

// dial connects from h, with a bound source address if from is valid.
func (h host) dial(from netip.Addr, to netip.AddrPort) (c *net.TCPConn, err error) {
	err = h.do(func() error {
		d := net.Dialer{Timeout: 5 * time.Second}
		if from.IsValid() {
			d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))
		}
		conn, err := d.Dial("tcp", to.String())
		if err == nil {
			c = conn.(*net.TCPConn)
		}
		return err
	})
	return c, err
}

// listen serves each connection to a port of h that the kernel chooses. The relay sees the port only.
func (h host) listen(t testing.TB, serve func(*net.TCPConn)) uint16 {
	t.Helper()
	var ln *net.TCPListener
	if err := h.do(func() (err error) {
		ln, err = net.ListenTCP("tcp", nil)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return lab.Serve(t, ln, serve)
}

// A path is one way through the relay.
type path struct {
	name   string
	dir    direction
	client host
	source netip.Addr // what the client binds to, if valid
	target netip.Addr // what it dials
	server host
	seen   netip.Addr // the client's address in the server's eyes
}

// paths are all ways, of both directions and both families.
func paths() []path {
	none := netip.Addr{}
	return []path{
		{"outbound v4", outbound, guest, none, world4, world, pod4},
		{"outbound v6", outbound, guest, none, world6, world, pod6},
		{"inbound v4", inbound, pod, mesh4, pod4, guest, gate4},
		{"inbound v6", inbound, pod, mesh6, pod6, guest, gate6},
	}
}

// eachPath runs f on every path, each with a relay of its own.
func eachPath(t *testing.T, f func(*testing.T, *relay, path)) {
	for _, p := range paths() {
		t.Run(p.name, func(t *testing.T) { f(t, start(t, Config{}), p) })
	}
}

// dial connects along p to a port of the server.
func (p path) dial(t testing.TB, port uint16) *net.TCPConn {
	t.Helper()
	c, err := p.client.dial(p.source, netip.AddrPortFrom(p.target, port))
	if err != nil {
		t.Fatalf("dial %s along %s: %v", p.target, p.name, err)
	}
	c.SetDeadline(time.Now().Add(time.Minute))
	t.Cleanup(func() { c.Close() })
	return c
}

// wantRefused checks that a connection along p to a port is reset, maybe before dial has returned.
func (p path) wantRefused(t testing.TB, port uint16) {
	t.Helper()
	c, err := p.client.dial(p.source, netip.AddrPortFrom(p.target, port))
	if err == nil {
		defer c.Close()
		c.SetDeadline(time.Now().Add(time.Minute))
		_, err = c.Read(make([]byte, 1))
	}
	if !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("%s to %s: %v, want %v", p.name, p.target, err, unix.ECONNRESET)
	}
}

// relay is a running Proxy.
type relay struct {
	*Proxy
	t     testing.TB
	drain func()     // begin to drain
	ended chan error // what Run returned
}

// start runs a relay between the lab's hosts until the test ends. Zero fields of cfg get the lab's values.
// Whatever the test did, nothing may be left of it then.
func start(t testing.TB, cfg Config) *relay {
	t.Helper()
	wantNothingLeft(t)
	cfg.OutboundPort, cfg.InboundPort, cfg.StatusPort = outPort, inPort, statPort
	if !cfg.GuestIPv4.IsValid() {
		cfg.GuestIPv4, cfg.GuestIPv6 = guest4, guest6
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	p, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &relay{Proxy: p, t: t, drain: cancel, ended: make(chan error, 1)}
	go func() { r.ended <- p.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := r.wait(); err != nil {
			t.Errorf("run: %v", err)
		}
	})
	return r
}

// usage is what this process holds.
type usage struct{ descriptors, pipes, goroutines int }

func used(t testing.TB) usage {
	t.Helper()
	pid := os.Getpid()
	return usage{lab.Descriptors(t, pid), lab.Descriptors(t, pid, "pipe"), runtime.NumGoroutine()}
}

// wantNothingLeft checks, after all that the test registers from now on, that it holds no more than now.
func wantNothingLeft(t testing.TB) {
	t.Helper()
	before := used(t)
	t.Cleanup(func() {
		var now usage
		for range 1000 {
			now = used(t)
			if now.descriptors <= before.descriptors && now.pipes <= before.pipes && now.goroutines <= before.goroutines {
				return
			}
			runtime.GC() // io.Copy of the test's own keeps pipes until then
			time.Sleep(10 * time.Millisecond)
		}
		t.Errorf("left behind: now %+v, before %+v", now, before)
	})
}

// awaitDescriptors waits until this process has no more than that, since io.Copy of the test's own keeps pipes until they
// are collected.
func awaitDescriptors(t testing.TB, most int) {
	t.Helper()
	lab.Await(t, fmt.Sprintf("at most %d descriptors", most), func() bool {
		runtime.GC()
		return lab.Descriptors(t, os.Getpid()) <= most
	})
}

// wait returns what Run returned. It may be called again.
func (r *relay) wait() error {
	select {
	case err := <-r.ended:
		r.ended <- err
		return err
	case <-time.After(time.Minute):
		return errors.New("the relay does not end")
	}
}

// get asks the status handler.
func (r *relay) get(path string) (code int, body string) {
	w := httptest.NewRecorder()
	r.Handler().ServeHTTP(w, httptest.NewRequest("GET", path, nil))
	return w.Code, w.Body.String()
}

// metric reads one series of /metrics, named without its prefix.
func (r *relay) metric(series string) int {
	r.t.Helper()
	_, body := r.get("/metrics")
	return lab.Metric(r.t, body, "meshvirt_proxy_"+series)
}

// noise is n bytes that only seed determines.
func noise(seed, n int) io.Reader {
	return io.LimitReader(rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16)}), int64(n))
}

// sum reads r to its end and gives a checksum of it.
func sum(t testing.TB, r io.Reader) string {
	h := sha256.New()
	n, err := io.Copy(h, r)
	if err != nil {
		t.Errorf("read, after %d bytes: %v", n, err)
	}
	return fmt.Sprintf("%d bytes, sha256 %x", n, h.Sum(nil))
}

// wantReset checks that c ends with RST, not with a FIN.
func wantReset(t testing.TB, c net.Conn) {
	t.Helper()
	if n, err := c.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("read gave %d bytes and %v, want %v", n, err, unix.ECONNRESET)
	}
}

package proxy

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/meshvirt/meshvirt/test/lab"
)

// A dial that fails resets that client, is counted by reason, and leaves the others alone.
func TestDialFailure(t *testing.T) {
	if err := world.nft(`table inet blackhole {
		chain in {
			type filter hook input priority 0
			tcp dport 9 drop
			tcp dport 10 reject with icmpx host-unreachable
		}
	}`); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := world.nft("delete table inet blackhole"); err != nil {
			t.Error(err)
		}
	})
	for _, p := range paths() {
		for _, c := range []struct {
			reason string
			port   uint16
			within time.Duration
		}{
			{"refused", 1, 0},
			{"timeout", 9, time.Second},
			// The first ICMP error finds the socket inside connect, and is ignored. The next counts.
			{"unreachable", 10, 0},
		} {
			if p.dir == inbound && c.reason != "refused" {
				continue // the blackhole is in the world
			}
			t.Run(p.name+" "+c.reason, func(t *testing.T) {
				r := start(t, Config{DialTimeout: c.within})
				other := p.dial(t, p.server.listen(t, lab.Echo))
				ping(t, other)
				p.wantRefused(t, c.port)
				ping(t, other)
				if n := r.metric(fmt.Sprintf("dial_failures_total{direction=%q,reason=%q}", p.dir, c.reason)); n != 1 {
					t.Errorf("%d failures counted, want 1", n)
				}
				if n := r.metric(fmt.Sprintf("connections_open{direction=%q}", p.dir)); n != 1 {
					t.Errorf("%d connections are open, want the other one", n)
				}
			})
		}
	}
	t.Run("no route", func(t *testing.T) {
		r := start(t, Config{})
		p := paths()[0]
		p.target = netip.MustParseAddr("192.0.2.99")
		p.wantRefused(t, 80)
		if n := r.metric(`dial_failures_total{direction="outbound",reason="unreachable"}`); n != 1 {
			t.Errorf("%d failures counted, want 1", n)
		}
	})
}

// ping sees whether an echo connection works.
func ping(t testing.TB, c net.Conn) {
	t.Helper()
	if err := lab.Ping(c); err != nil {
		t.Errorf("ping: %v", err)
	}
}

// A time-out is for the dial alone: a server that does not read for longer keeps its connection.
func TestDialTimeoutEndsWithDial(t *testing.T) {
	start(t, Config{DialTimeout: 100 * time.Millisecond})
	p := paths()[0]
	c := p.dial(t, p.server.listen(t, lab.Echo))
	ping(t, c)
	if err := world.nft("table inet mute { chain in { type filter hook input priority 0; tcp flags & (syn|fin) == 0 drop\n}\n}"); err != nil {
		t.Fatal(err)
	}
	io.WriteString(c, "late")
	c.SetReadDeadline(time.Now().Add(700 * time.Millisecond))
	if _, err := c.Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), "timeout") {
		t.Errorf("while the server was mute the client read %v, want to wait", err)
	}
	if err := world.nft("delete table inet mute"); err != nil {
		t.Fatal(err)
	}
	c.SetReadDeadline(time.Now().Add(time.Minute))
	if got, err := io.ReadAll(io.LimitReader(c, 4)); string(got) != "late" || err != nil {
		t.Errorf("got %q and %v, want the echo at last", got, err)
	}
}

// What must not be dialled is refused with RST, counted and logged, in the same way for everybody.
func TestRefusals(t *testing.T) {
	var log bytes.Buffer
	r := start(t, Config{Log: slog.New(slog.NewJSONHandler(&log, nil))})
	// A listener that the guest must not reach, on every address of the pod.
	secret := pod.listen(t, func(c *net.TCPConn) { io.WriteString(c, "secret") })
	for _, c := range []struct {
		from   host
		source netip.Addr
		to     string
		dir    direction
		reason Reason
	}{
		{guest, netip.Addr{}, fmt.Sprintf("127.0.0.1:%d", secret), outbound, Loopback},
		{guest, netip.Addr{}, fmt.Sprintf("10.0.2.1:%d", secret), outbound, Local},
		{guest, netip.Addr{}, fmt.Sprintf("10.244.1.10:%d", secret), outbound, Local},
		{guest, netip.Addr{}, fmt.Sprintf("10.244.1.11:%d", secret), outbound, Local},
		{guest, netip.Addr{}, fmt.Sprintf("[fd10:0:2::1]:%d", secret), outbound, Local},
		{guest, netip.Addr{}, fmt.Sprintf("[fd00:10:244:1::10]:%d", secret), outbound, Local},
		{guest, netip.Addr{}, "169.254.169.254:80", outbound, LinkLocal},
		{guest, netip.Addr{}, fmt.Sprintf("10.0.2.1:%d", outPort), outbound, Local},
		{guest, netip.Addr{}, fmt.Sprintf("10.0.2.1:%d", statPort), outbound, Local},
		// Nobody redirected these: the relay would dial itself for ever.
		{world, netip.Addr{}, fmt.Sprintf("10.244.1.10:%d", outPort), outbound, Local},
		{world, netip.Addr{}, fmt.Sprintf("[fd00:10:244:1::10]:%d", outPort), outbound, Local},
		{pod, netip.Addr{}, fmt.Sprintf("127.0.0.1:%d", outPort), outbound, Loopback},
		{world, netip.Addr{}, fmt.Sprintf("10.244.1.10:%d", inPort), inbound, OwnPort},
		{pod, netip.Addr{}, fmt.Sprintf("[::1]:%d", inPort), inbound, OwnPort},
		{pod, mesh4, fmt.Sprintf("10.244.1.10:%d", inPort), inbound, OwnPort},
		{pod, mesh4, fmt.Sprintf("10.244.1.10:%d", statPort), inbound, OwnPort},
	} {
		t.Run(c.to, func(t *testing.T) {
			log.Reset()
			series := fmt.Sprintf("refused_total{direction=%q,reason=%q}", c.dir, c.reason)
			before := r.metric(series)
			to := netip.MustParseAddrPort(c.to)
			path{client: c.from, source: c.source, target: to.Addr()}.wantRefused(t, to.Port())
			r.get("/livez") // the log is written by now
			if n := r.metric(series) - before; n != 1 {
				t.Errorf("%s rose by %d, want 1", series, n)
			}
			for _, want := range []string{
				`"msg":"connection refused"`, `"destination":"` + c.to + `"`, `"reason":"` + string(c.reason) + `"`,
				`"direction":"` + c.dir.String() + `"`, `"client":"`,
			} {
				if !strings.Contains(log.String(), want) {
					t.Errorf("log is %q, want %s in it", log.String(), want)
				}
			}
		})
	}
	for _, dir := range []direction{outbound, inbound} {
		if n := r.metric(fmt.Sprintf("connections_total{direction=%q}", dir)); n != 0 {
			t.Errorf("%d %s connections were dialled, want none", n, dir)
		}
	}
}

// Without the relay's refusal the guest would have reached those: it has a route and a redirect.
func TestRefusalIsWhatProtects(t *testing.T) {
	secret := pod.listen(t, func(c *net.TCPConn) { io.WriteString(c, "secret") })
	r := start(t, Config{})
	r.policy.Load().bind = bindsTo() // nothing is local
	c, err := guest.dial(netip.Addr{}, netip.AddrPortFrom(pod4, secret))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got, err := io.ReadAll(c); string(got) != "secret" {
		t.Errorf("read %q and %v, want the secret", got, err)
	}
}

// A connection that conntrack does not know has no original destination.
func TestUntracked(t *testing.T) {
	r := start(t, Config{})
	if err := pod.nft("table inet blind { chain out { type filter hook output priority -300; tcp dport 15201 notrack; tcp sport 15201 notrack\n}\n}"); err != nil {
		t.Fatal(err)
	}
	for _, target := range []string{"127.0.0.1", "::1"} {
		path{client: pod, target: netip.MustParseAddr(target)}.wantRefused(t, outPort)
	}
	if err := pod.nft("delete table inet blind"); err != nil {
		t.Fatal(err)
	}
	if n := r.metric(`refused_total{direction="outbound",reason="untracked"}`); n != 2 {
		t.Errorf("%d refusals counted, want 2", n)
	}
}

// A guest without IPv6 gets no IPv6.
func TestNoGuestAddress(t *testing.T) {
	r := start(t, Config{GuestIPv4: guest4})
	for _, p := range paths()[2:] {
		port := p.server.listen(t, lab.Echo)
		if p.target.Is4() {
			ping(t, p.dial(t, port))
		} else {
			p.wantRefused(t, port)
		}
	}
	if n := r.metric(`refused_total{direction="inbound",reason="no-guest"}`); n != 1 {
		t.Errorf("%d refusals counted, want 1", n)
	}
}

// With no descriptors left for another flow, new clients are refused, and the flows that are open go
// on. The descriptors of the status server are never touched.
func TestFull(t *testing.T) {
	const flows = 4
	restore := lab.LimitFiles(t, reservedFiles+loopFiles+2*flows)
	r := start(t, Config{})
	restore()
	p := paths()[0]
	port := p.server.listen(t, lab.Echo)
	var open []*net.TCPConn
	for range flows {
		open = append(open, p.dial(t, port))
		ping(t, open[len(open)-1])
	}
	for range 3 {
		p.wantRefused(t, port)
	}
	if n := r.metric(`refused_total{direction="outbound",reason="full"}`); n != 3 {
		t.Errorf("%d refusals counted, want 3", n)
	}
	for _, c := range open {
		ping(t, c)
	}
	open[0].Close()
	lab.Await(t, "the first one closed", func() bool { return r.metric(`connections_open{direction="outbound"}`) == flows-1 })
	ping(t, p.dial(t, port))
}

// A flood of failures is a few lines of log, and the next line tells how many were left out.
func TestLogIsBounded(t *testing.T) {
	var log bytes.Buffer
	l := &loop{proxy: &Proxy{cfg: Config{Log: slog.New(slog.NewJSONHandler(&log, nil))}}}
	l.second = time.Now().Unix() + 1000
	for range 3 { // the second may change once or twice meanwhile
		for range 1000 {
			l.warn("dial failed")
		}
	}
	if n := strings.Count(log.String(), "\n"); n < logLines || n > 3*logLines {
		t.Errorf("3000 failures gave %d lines, want about %d", n, logLines)
	}
	log.Reset()
	left := l.unsaid
	l.second = 0
	l.warn("dial failed")
	if want := fmt.Sprintf(`"leftOut":%d`, left); !strings.Contains(log.String(), want) {
		t.Errorf("the next line is %q, want %s in it", log.String(), want)
	}
}

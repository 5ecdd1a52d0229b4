package dns

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meshvirt/meshvirt/test/lab"
)

// Datagrams of any size pass both ways, and answers come from the address that was asked.
func TestForward(t *testing.T) {
	for _, c := range []struct {
		name                string
		guest, gate, server netip.Addr
		largest             int // of a datagram in this family
	}{
		{"v4", guest4, gate4, server4, 65507},
		{"v6", guest6, gate6, server6, 65487},
		{"v4 asked at another address", guest4, netip.MustParseAddr("10.0.2.9"), server4, 512},
		{"v6 asked at another address", guest6, netip.MustParseAddr("fd10:0:2::9"), server6, 512},
		{"v4 to a v6 server", guest4, gate4, server6, 512},
		{"v6 to a v4 server", guest6, gate6, server4, 512},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := start(t, Config{Servers: []netip.Addr{c.server}, Interfaces: []string{"lo"}})
			s, g := serve(t, c.server), ask(t, c.guest, c.gate)
			sizes := []int{0, 1, 12, 512, 1232, 4096, c.largest}
			for _, size := range sizes {
				want := strings.Repeat("q", min(size, c.largest))
				g.send(want)
				query, from := s.next()
				if query != want {
					t.Fatalf("the server got %d bytes, want %d", len(query), len(want))
				}
				s.answer(strings.ToUpper(want), from)
				if got := g.receive(); got != strings.ToUpper(want) {
					t.Fatalf("the guest got %d bytes, want %d", len(got), len(want))
				}
			}
			r.wantMetric("queries_total", "", len(sizes))
			r.wantMetric("answers_total", "", len(sizes))
			r.wantMetric("clients", "", 1)
		})
	}
}

// A kernel without IPv6 has a listener of the other family, whose control messages differ.
func TestWithoutIPv6(t *testing.T) {
	r, err := New(Config{Port: port, Servers: []netip.Addr{server4}, Guest: []netip.Addr{guest4}, Interfaces: []string{"lo"}})
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(r.listeners[0].fd)
	if r.listeners[0].fd, err = listenOn(netip.IPv4Unspecified(), port); err != nil {
		t.Fatal(err)
	}
	if err := r.watch(r.listeners[0].fd); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error)
	go func() { ended <- r.Run() }()
	go serve(t, server4).echo()
	g := ask(t, guest4, netip.MustParseAddr("10.0.2.9"))
	g.send("hello")
	if got := g.receive(); got != "hello" {
		t.Errorf("got %q", got)
	}
	r.Stop(0)
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// The next ports are for the other servers: the guest's own choice among them holds.
func TestServers(t *testing.T) {
	start(t, Config{Servers: []netip.Addr{server4, server6, other4}})
	g := ask(t, guest4, gate4)
	for i, at := range []netip.Addr{server4, server6, other4} {
		s := serve(t, at)
		g.to = netip.AddrPortFrom(gate4, port+uint16(i))
		g.send(at.String())
		query, from := s.next()
		if query != at.String() {
			t.Errorf("server %s got %q", at, query)
		}
		s.answer("yes", from)
		g.receive()
	}
}

// Many queries may be under way from one port, and answers come in any order. Each port of the guest has its own
// port towards the server, which nobody can tell beforehand.
func TestPipelined(t *testing.T) {
	start(t, Config{})
	const clients, queries = 20, 40
	s := serve(t, server4)
	var guests []testClient
	for range clients {
		guests = append(guests, ask(t, guest4, gate4))
	}
	type asked struct {
		query string
		from  netip.AddrPort
	}
	var all []asked
	for i := range queries {
		for j, g := range guests {
			g.send(fmt.Sprint(j, " ", i))
			query, from := s.next()
			all = append(all, asked{query, from})
		}
	}
	rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	for _, a := range all {
		s.answer(a.query, a.from)
	}
	ports := map[uint16]string{}
	for _, a := range all {
		client, _, _ := strings.Cut(a.query, " ")
		if owner, ok := ports[a.from.Port()]; ok && owner != client {
			t.Errorf("clients %s and %s share port %d", owner, client, a.from.Port())
		}
		ports[a.from.Port()] = client
	}
	for j, g := range guests {
		var got []string
		for range queries {
			got = append(got, g.receive())
		}
		for i := range queries {
			if !slices.Contains(got, fmt.Sprint(j, " ", i)) {
				t.Errorf("client %d got no answer to query %d", j, i)
			}
		}
	}
	if len(ports) != clients {
		t.Errorf("%d ports were used for %d clients", len(ports), clients)
	}
	sorted := make([]int, 0, len(ports))
	for p := range ports {
		sorted = append(sorted, int(p))
	}
	slices.Sort(sorted)
	if spread := sorted[len(sorted)-1] - sorted[0]; spread < 20*clients {
		t.Errorf("ports %v lie within %d, want them chosen at random", sorted, spread)
	}
}

// Only the guest may use it: others get nothing, and the server is not asked.
func TestStrangers(t *testing.T) {
	for name, c := range map[string]struct {
		cfg  Config
		from netip.Addr
	}{
		"another address":   {Config{}, netip.MustParseAddr("10.0.2.3")},
		"the pod itself":    {Config{}, gate4},
		"another interface": {Config{Interfaces: []string{"other"}}, guest4},
		"no address":        {Config{Guest: []netip.Addr{{}, guest6}}, guest4},
	} {
		t.Run(name, func(t *testing.T) {
			r, s := start(t, c.cfg), serve(t, server4)
			g := ask(t, c.from, gate4)
			g.send("let me in")
			r.wantMetric("dropped_total", Stranger, 1)
			s.SetDeadline(time.Now().Add(50 * time.Millisecond))
			if n, _, err := s.ReadFromUDPAddrPort(make([]byte, 100)); err == nil {
				t.Errorf("the server was asked %d bytes", n)
			}
			r.wantMetric("clients", "", 0)
		})
	}
}

// Who is not the server gets no answer in, even if it knows the port.
func TestOffPath(t *testing.T) {
	start(t, Config{})
	s, g := serve(t, server4), ask(t, guest4, gate4)
	g.send("who?")
	_, from := s.next()
	for _, at := range []netip.AddrPort{netip.AddrPortFrom(other4, 53), netip.AddrPortFrom(server4, 54), netip.AddrPortFrom(guest4, 53)} {
		if _, err := udpSocket(t, at).WriteToUDPAddrPort([]byte("me"), from); err != nil {
			t.Fatal(err)
		}
	}
	s.answer("the server", from)
	if got := g.receive(); got != "the server" {
		t.Errorf("the guest got %q first, want the server's answer", got)
	}
}

// State is bounded: who was silent longest makes place, and first of all who has its answers.
func TestClientsAreBounded(t *testing.T) {
	before := lab.Descriptors(t, os.Getpid(), "socket")
	r := start(t, Config{Clients: 8})
	s := serve(t, server4)
	answered := ask(t, guest4, gate4)
	var waiting []testClient
	var from []netip.AddrPort
	for i := range 7 {
		waiting = append(waiting, ask(t, guest4, gate4))
		waiting[i].send(fmt.Sprint(i))
		_, a := s.next()
		from = append(from, a)
	}
	answered.send("quick")
	_, a := s.next()
	s.answer("done", a)
	answered.receive()

	waiting = append(waiting, ask(t, guest4, gate4)) // takes the place of the one that has its answer
	waiting[7].send("7")
	_, a = s.next()
	from = append(from, a)
	r.wantMetric("dropped_total", Evicted, 0)
	for i, g := range waiting {
		s.answer(fmt.Sprint("answer ", i), from[i])
		if got := g.receive(); got != fmt.Sprint("answer ", i) {
			t.Errorf("client %d got %q", i, got)
		}
	}
	own := 1 + 1 + len(waiting) // the test's
	for range 100 {             // nobody answers these
		g := ask(t, guest4, gate4)
		own++
		g.send("void")
		s.next()
	}
	r.wantMetric("clients", "", 8)
	r.wantMetric("dropped_total", Evicted, 92)
	if n := lab.Descriptors(t, os.Getpid(), "socket") - before - own; n != 1+8 {
		t.Errorf("the forwarder has %d sockets, want its listener and 8", n)
	}
	if Descriptors(1, 8) != 2+1+8 {
		t.Errorf("%d descriptors are promised for one server and 8 clients", Descriptors(1, 8))
	}
}

// A client of which nothing is heard is forgotten, answered or not.
func TestIdle(t *testing.T) {
	r := start(t, Config{Idle: 100 * time.Millisecond})
	s := serve(t, server4)
	g, void := ask(t, guest4, gate4), ask(t, guest4, gate4)
	g.send("a")
	_, from := s.next()
	s.answer("b", from)
	g.receive()
	void.send("c")
	s.next()
	r.wantMetric("clients", "", 0)
	r.wantMetric("dropped_total", Unanswered, 1)
	g.send("again")
	if _, now := s.next(); now == from {
		t.Logf("the kernel chose port %d twice", from.Port())
	}
}

// While nobody listens at the server the guest hears nothing, and as soon as somebody does, it is answered.
func TestServerDown(t *testing.T) {
	r := start(t, Config{})
	g := ask(t, guest4, gate4)
	g.send("anybody?")
	r.wantMetric("dropped_total", Refused, 1)
	go serve(t, server4).echo()
	g.send("now?")
	if got := g.receive(); got != "now?" {
		t.Errorf("got %q", got)
	}
	r.wantMetric("clients", "", 1)
}

// A server that no route leads to is not the end of the others.
func TestServerUnreachable(t *testing.T) {
	r := start(t, Config{Servers: []netip.Addr{netip.MustParseAddr("192.0.2.1"), server4}})
	go serve(t, server4).echo()
	g := ask(t, guest4, gate4)
	g.send("lost")
	r.wantMetric("dropped_total", Unreachable, 1)
	r.wantMetric("clients", "", 0)
	g.to = netip.AddrPortFrom(gate4, port+1)
	g.send("found")
	if got := g.receive(); got != "found" {
		t.Errorf("got %q", got)
	}
}

// Without descriptors queries are dropped, and with some again they are not.
func TestExhausted(t *testing.T) {
	r := start(t, Config{})
	go serve(t, server4).echo()
	g := ask(t, guest4, gate4)
	restore := lab.LimitFiles(t, 3)
	g.send("full")
	lab.Await(t, "the query dropped", func() bool { return r.metric("dropped_total", Exhausted) == 1 })
	restore()
	g.send("again")
	if got := g.receive(); got != "again" {
		t.Errorf("got %q", got)
	}
}

// Stop lets answers in that are under way, and no further query.
func TestStop(t *testing.T) {
	before, goroutines := lab.Descriptors(t, os.Getpid(), "socket"), runtime.NumGoroutine()
	t.Run("answered", func(t *testing.T) {
		r := start(t, Config{})
		s, g := serve(t, server4), ask(t, guest4, gate4)
		g.send("early")
		_, from := s.next()
		r.Stop(time.Minute)
		lab.Await(t, "the listener closed to queries", func() bool {
			g.send("late")
			time.Sleep(20 * time.Millisecond) // it may have been taken still
			was := r.metric("queries_total", "")
			g.send("later")
			time.Sleep(20 * time.Millisecond)
			return r.metric("queries_total", "") == was
		})
		for range r.metric("queries_total", "") - 1 {
			_, a := s.next()
			s.answer("to late", a)
		}
		select {
		case err := <-r.ended:
			t.Fatalf("run returned %v while a query was under way", err)
		default:
		}
		s.answer("to early", from)
		for g.receive() != "to early" {
		}
		if err := r.wait(); err != nil {
			t.Error(err)
		}
	})
	t.Run("given up", func(t *testing.T) {
		r := start(t, Config{})
		s, g := serve(t, server4), ask(t, guest4, gate4)
		g.send("void")
		s.next()
		r.Stop(50 * time.Millisecond)
		if err := r.wait(); err != nil {
			t.Error(err)
		}
		r.wantMetric("dropped_total", Stopped, 1)
	})
	if n := lab.Descriptors(t, os.Getpid(), "socket"); n != before {
		t.Errorf("%d sockets are open, before %d", n, before)
	}
	lab.Await(t, "the goroutines end", func() bool { return runtime.NumGoroutine() <= goroutines })
}

func TestNewRefuses(t *testing.T) {
	start(t, Config{})
	before := lab.Descriptors(t, os.Getpid(), "socket")
	for want, cfg := range map[string]Config{
		"15253":                  {Port: port, Servers: []netip.Addr{server4}},
		"address already in use": {Port: port - 1, Servers: []netip.Addr{server4, server6}},
		"no nameserver":          {Port: port},
	} {
		if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error is %v, want %q in it", err, want)
		}
	}
	if n := lab.Descriptors(t, os.Getpid(), "socket"); n != before {
		t.Errorf("%d sockets are open, before %d", n, before)
	}
	if c, err := net.ListenPacket("udp", fmt.Sprintf(":%d", port-1)); err != nil {
		t.Error(err)
	} else {
		c.Close()
	}
}

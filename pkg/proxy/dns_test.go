package proxy

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/meshvirt/meshvirt/test/lab"
)

// udp opens a UDP socket of a host.
func (h host) udp(t *testing.T, at netip.AddrPort) *net.UDPConn {
	t.Helper()
	var c *net.UDPConn
	if err := h.do(func() (err error) {
		c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(time.Minute))
	return c
}

func read(t *testing.T, c *net.UDPConn) (string, netip.AddrPort) {
	t.Helper()
	b := make([]byte, 1<<16)
	n, from, err := c.ReadFromUDPAddrPort(b)
	if err != nil {
		t.Fatal(err)
	}
	return string(b[:n]), netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
}

// The relay asks the guest's DNS again from the pod, and answers come from the server that the guest asked.
// What is under way when it drains is answered still.
func TestDNS(t *testing.T) {
	for i, c := range []struct{ guest, server, pod netip.Addr }{{guest4, world4, pod4}, {guest6, world6, pod6}} {
		t.Run(c.guest.String(), func(t *testing.T) {
			r := start(t, Config{DNSPort: dnsPort, Nameservers: []netip.Addr{world4, world6}, Interfaces: []string{"k6t-eth0"}, Drain: time.Minute})
			p := paths()[i] // TCP first: it sends again what is lost while hosts that are new look for each other
			first := p.dial(t, p.server.listen(t, lab.Echo))
			ping(t, first)
			first.Close()
			server, client := world.udp(t, netip.AddrPortFrom(c.server, 53)), guest.udp(t, netip.AddrPortFrom(c.guest, 0))
			ask := func(query string) (from netip.AddrPort) {
				t.Helper()
				if _, err := client.WriteToUDPAddrPort([]byte(query), netip.AddrPortFrom(c.server, 53)); err != nil {
					t.Fatal(err)
				}
				got, from := read(t, server)
				if got != query || from.Addr() != c.pod {
					t.Errorf("the server got %q from %s, want %q from %s", got, from.Addr(), query, c.pod)
				}
				return from
			}
			answer := func(text string, to netip.AddrPort) {
				t.Helper()
				if _, err := server.WriteToUDPAddrPort([]byte(text), to); err != nil {
					t.Fatal(err)
				}
				if got, from := read(t, client); got != text || from != netip.AddrPortFrom(c.server, 53) {
					t.Errorf("the guest got %q from %s, want %q from %s", got, from, text, c.server)
				}
			}
			answer("one", ask("one?"))
			to := ask("two?")
			r.drain()
			lab.Await(t, "the drain", func() bool { code, _ := r.get("/readyz"); return code == 503 })
			select {
			case err := <-r.ended:
				t.Fatalf("run returned %v while a query was under way", err)
			case <-time.After(50 * time.Millisecond):
			}
			answer("two", to)
			if err := r.wait(); err != nil {
				t.Error(err)
			}
			for series, want := range map[string]int{"dns_queries_total": 2, "dns_answers_total": 2, `dns_dropped_total{reason="stranger"}`: 0} {
				if n := r.metric(series); n != want {
					t.Errorf("%s is %d, want %d", series, n, want)
				}
			}
		})
	}
}

// DNS goes on while connections finish, however long that takes.
func TestDNSWhileDraining(t *testing.T) {
	r := start(t, Config{DNSPort: dnsPort, Nameservers: []netip.Addr{world4}, Drain: time.Minute})
	p := paths()[0]
	c := p.dial(t, p.server.listen(t, lab.Echo))
	ping(t, c)
	r.drain()
	lab.Await(t, "the drain", func() bool { code, _ := r.get("/readyz"); return code == 503 })
	server, client := world.udp(t, netip.AddrPortFrom(world4, 53)), guest.udp(t, netip.AddrPortFrom(guest4, 0))
	for i := range 3 {
		client.WriteToUDPAddrPort([]byte("still?"), netip.AddrPortFrom(world4, 53))
		_, from := read(t, server)
		server.WriteToUDPAddrPort([]byte("yes"), from)
		if got, _ := read(t, client); got != "yes" {
			t.Errorf("query %d: got %q", i, got)
		}
	}
	c.Close()
	if err := r.wait(); err != nil {
		t.Error(err)
	}
}

// Who comes from elsewhere with the guest's address gets nothing.
func TestDNSFromElsewhere(t *testing.T) {
	r := start(t, Config{DNSPort: dnsPort, Nameservers: []netip.Addr{world4}, Interfaces: []string{"k6t-eth0"}})
	if err := world.run("ip addr add 10.0.2.2/32 dev lo"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := world.run("ip addr del 10.0.2.2/32 dev lo"); err != nil {
			t.Error(err)
		}
	})
	posing := world.udp(t, netip.AddrPortFrom(guest4, 0))
	if _, err := posing.WriteToUDPAddrPort([]byte("?"), netip.AddrPortFrom(pod4, dnsPort)); err != nil {
		t.Fatal(err)
	}
	lab.Await(t, "the query dropped", func() bool { return r.metric(`dns_dropped_total{reason="stranger"}`) == 1 })
	if n := r.metric("dns_queries_total"); n != 0 {
		t.Errorf("%d queries counted, want none", n)
	}
}

// Without a nameserver, or without a port, there is no forwarder; and a port that is taken is told.
func TestDNSConfig(t *testing.T) {
	for _, cfg := range []Config{{DNSPort: dnsPort}, {Nameservers: []netip.Addr{world4}}} {
		r := start(t, cfg)
		if r.dns != nil {
			t.Errorf("%+v: there is a forwarder", cfg)
		}
		r.drain()
		r.wait()
	}
	pod.udp(t, netip.AddrPortFrom(netip.IPv6Unspecified(), dnsPort))
	before := lab.Descriptors(t, os.Getpid())
	_, err := New(Config{OutboundPort: outPort, InboundPort: inPort, StatusPort: statPort, DNSPort: dnsPort, Nameservers: []netip.Addr{world4}})
	if want := fmt.Sprintf("port %d: bind: address already in use", dnsPort); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("error is %v, want %q in it", err, want)
	}
	awaitDescriptors(t, before)
}

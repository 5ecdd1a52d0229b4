package bridge

import (
	"context"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/meshvirt/meshvirt/test/lab"
)

// inNamespace runs f on a thread of its own in a network namespace of its own. ip runs ip(8) there.
func inNamespace(t *testing.T, f func(ip func(args ...string))) {
	t.Helper()
	lab.NeedRoot(t)
	err := lab.InNamespace(func() error {
		f(func(args ...string) {
			if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
				t.Errorf("ip %s: %v\n%s", strings.Join(args, " "), err, out)
			}
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestFind(t *testing.T) {
	inNamespace(t, func(ip func(...string)) {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			t.Error(err)
			return
		}
		defer h.Close()
		want := func(step string, want ...Bridge) {
			t.Helper()
			got, err := Find(h)
			if diff := cmp.Diff(want, got.Bridges, cmpopts.EquateComparable(netip.Addr{})); diff != "" || err != nil {
				t.Errorf("%s: %v (-want +got)\n%s", step, err, diff)
			}
		}
		bridge := func(name string, addrs ...string) {
			ip("link", "add", name, "type", "bridge")
			for _, a := range addrs {
				ip("addr", "add", a, "dev", name)
			}
		}
		want("nothing")
		bridge("k6t-eth0")
		want("no address yet")
		ip("addr", "add", "10.0.2.1/24", "dev", "k6t-eth0")
		eth0 := at("k6t-eth0", "eth0", "10.0.2.2", "")
		want("IPv4", eth0)
		ip("addr", "add", "fd10:0:2::1/120", "dev", "k6t-eth0", "nodad")
		eth0 = at("k6t-eth0", "eth0", "10.0.2.2", "fd10:0:2::2")
		want("both", eth0)

		// None of these is of the masquerade binding.
		bridge("k6t-16477688c0e", "169.254.75.11/32")
		bridge("k6t-secondary", "169.254.75.1/24")
		bridge("k6t-host", "10.1.2.3/24")
		bridge("k6t-tiny", "10.1.2.1/31")
		bridge("k6t-single", "10.1.2.1/32")
		bridge("k6t-local", "fe80::1/64")
		bridge("br0", "10.7.0.1/24")
		ip("link", "add", "k6t-veth", "type", "veth", "peer", "name", "x")
		ip("addr", "add", "10.8.0.1/24", "dev", "k6t-veth")
		want("others beside it", eth0)

		bridge("k6t-ovn-udn1", "fd20::1/120")
		ip("link", "add", "pod37a8eec1ce1", "type", "veth", "peer", "name", "y")
		bridge("k6t-37a8eec1ce1", "192.168.7.1/29")
		want("hashed, IPv6 alone", at("k6t-37a8eec1ce1", "pod37a8eec1ce1", "192.168.7.2", ""), eth0, at("k6t-ovn-udn1", "ovn-udn1", "", "fd20::2"))

		ip("link", "del", "k6t-eth0")
		ip("link", "del", "k6t-37a8eec1ce1")
		want("gone", at("k6t-ovn-udn1", "ovn-udn1", "", "fd20::2"))
	})
}

// TestFollow has no capability, as the relay.
func TestFollow(t *testing.T) {
	inNamespace(t, func(ip func(...string)) {
		ip("link", "set", "lo", "up")
		events, ended := make(chan Event, 1000), make(chan struct{})
		ns, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			t.Error(err)
			return
		}
		defer ns.Close()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go func() {
			defer close(ended)
			runtime.LockOSThread()
			if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
				t.Error(err)
				return
			}
			var none [2]unix.CapUserData
			if err := unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0]); err != nil {
				t.Error(err)
				return
			}
			refused := false
			Follow(ctx, func(e Event) bool {
				events <- e
				if len(e.Found.Bridges) == 2 && !refused { // no message follows: it has to come by itself
					refused = true
					return false
				}
				return true
			})
		}()
		until := func(what string, fits func(Event) bool) {
			t.Helper()
			deadline := time.After(20 * time.Second)
			for {
				select {
				case e := <-events:
					if e.Err != nil {
						t.Errorf("%s: %v", what, e.Err)
					}
					if fits(e) {
						return
					}
				case <-deadline:
					t.Errorf("no event of %s", what)
					return
				}
			}
		}
		has := func(n int, guest string) func(Event) bool {
			return func(e Event) bool {
				return len(e.Found.Bridges) == n && (n == 0 || e.Found.Bridges[0].IPv4 == addr(guest))
			}
		}
		until("the beginning", func(e Event) bool { return e.Begin })
		ip("link", "add", "k6t-eth0", "type", "bridge")
		until("the link", func(e Event) bool { return e.Link != nil && e.Link.Attrs().Name == "k6t-eth0" })
		ip("addr", "add", "10.0.2.1/24", "dev", "k6t-eth0")
		until("the address", has(1, "10.0.2.2"))
		ip("addr", "del", "10.0.2.1/24", "dev", "k6t-eth0")
		until("no address", has(0, ""))
		ip("addr", "add", "10.0.3.1/24", "dev", "k6t-eth0")
		until("another address", has(1, "10.0.3.2"))
		ip("link", "add", "k6t-net1", "type", "bridge")
		ip("addr", "add", "10.0.4.1/24", "dev", "k6t-net1")
		until("the second bridge", has(2, "10.0.3.2"))
		until("the second attempt", func(e Event) bool { return e.Link == nil && has(2, "10.0.3.2")(e) })
		ip("link", "del", "k6t-net1")
		ip("link", "del", "k6t-eth0")
		until("nothing", has(0, ""))
		cancel()
		select {
		case <-ended:
		case <-time.After(20 * time.Second):
			t.Error("Follow does not end with its context")
		}
	})
}

package netlab

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/meshvirt/meshvirt/test/e2e/netlab/agent"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/packet"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/vm"
	"github.com/meshvirt/meshvirt/test/lab"
)

const (
	halfOpen = 50_000 // connections of which the guest sends the first packet only
	idle     = 2_000  // connections on which it never says anything
	// memoryFor either is what the relay may take in bytes; idle connections cost it some hundred each.
	memoryFor = 32 << 20
)

// TestFlood has the guest open connections without end. The relay stays up, serves others all the time,
// holds no descriptor for what is half open and two for what is idle, and gives all back.
func TestFlood(t *testing.T) {
	for _, mode := range relaying {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			l := attackLab(t, mode, kubevirtModes["istio mode"], nil)
			relay := l.containers[len(l.containers)-1].Pid()
			serves(t, l)
			files, memory := lab.Descriptors(t, relay), resident(t, relay)
			check := func(when string, more int) {
				t.Helper()
				serves(t, l)
				wantDescriptors(t, relay, files+more, when)
				if got := resident(t, relay); got > memory+memoryFor {
					t.Errorf("%s: the relay has %d bytes of memory, had %d", when, got, memory)
				}
			}

			floodHalfOpen(t, l)
			check("with half-open connections", 0)

			open := openIdle(t, l)
			check("with idle connections", 2*idle)
			for _, c := range open {
				c.Close()
			}
			check("after idle connections", 0)
			if d, err := l.Node.Dial(t.Context(), agent.Dial{Network: "tcp", To: at(PodIP4, 15120), Kind: agent.HTTP, Path: "/readyz", Timeout: 10 * time.Second}); err != nil || d.Status != http.StatusOK {
				t.Errorf("the relay's readiness: %+v, %v", d, err)
			}
		})
	}
}

// floodHalfOpen sends a SYN for each connection, and keeps the guest's kernel from ending them by RST.
// Between, and so with the queue of the relay's listener full, others are served.
func floodHalfOpen(t *testing.T, l *Lab) {
	t.Helper()
	_, err := runIn(t.Context(), l.guest, "table inet quiet {\nchain out {\ntype filter hook output priority 0\nip daddr 198.18.0.0/15 tcp flags & rst == rst drop\n}\n}\n", "nft", "-f", "-")
	do(t, err)
	const batch = 5000
	for sent := 0; sent < halfOpen; sent += batch {
		frames := make([]agent.Frame, batch)
		for i := range frames {
			n := sent + i
			to := netip.AddrFrom4([4]byte{198, 18, byte(n >> 8), byte(n)})
			frames[i] = frame(packet.NewTCP(at(GuestIP4, uint16(10000+n/1000)), at(to, HTTPPort), packet.SYN, uint32(n), nil).Bytes())
		}
		do(t, l.Guest.Send(t.Context(), agent.Send{Link: vm.Link, Frames: frames}))
		serves(t, l)
	}
	waiting, err := l.RunInPod(t.Context(), "", "ss", "-Htn", "state", "syn-recv")
	do(t, err)
	if strings.TrimSpace(waiting) == "" {
		t.Error("no connection is half open: the flood did not reach the relay")
	}
}

// openIdle opens connections through the relay to a server that waits as well.
func openIdle(t *testing.T, l *Lab) (open []net.Conn) {
	t.Helper()
	var ln net.Listener
	do(t, l.peer.Do(func() (err error) {
		ln, err = net.Listen("tcp", at(PeerIP4, 9000).String())
		return err
	}))
	t.Cleanup(func() { ln.Close() })
	go agent.Accept(ln, func(c *net.TCPConn) { io.Copy(io.Discard, c) })
	t.Cleanup(func() {
		for _, c := range open {
			c.Close()
		}
	})
	do(t, l.guest.Do(func() error {
		for i := range idle {
			c, err := net.DialTimeout("tcp", ln.Addr().String(), 10*time.Second)
			if err != nil {
				return fmt.Errorf("connection %d: %w", i, err)
			}
			open = append(open, c)
		}
		return nil
	}))
	return open
}

// serves makes a connection of the guest's through the mesh, and the relay if there is one, within a bounded wait.
func serves(t *testing.T, l *Lab) {
	t.Helper()
	var last string
	for range 5 {
		d, err := l.Guest.Dial(t.Context(), agent.Dial{Network: "tcp", To: at(PeerIP4, AppPort), Kind: agent.Echo, Token: "flood", Bytes: payload, Timeout: 5 * time.Second})
		do(t, err)
		if d.OK {
			return
		}
		last = d.Err
	}
	t.Fatalf("a new connection is not served: %s", last)
}

// wantDescriptors waits until the process has about so many: others that ask it come and go.
func wantDescriptors(t *testing.T, pid, want int, when string) {
	t.Helper()
	const others = 8
	var got int
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if got = lab.Descriptors(t, pid); want-others <= got && got <= want+others {
			return
		}
	}
	t.Errorf("%s: the relay has %d descriptors, want %d and at most %d more or less: %v", when, got, want, others, descriptorKinds(pid))
}

// descriptorKinds counts a process's descriptors by what they are, such as "socket".
func descriptorKinds(pid int) map[string]int {
	count := map[string]int{}
	all, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	for _, fd := range all {
		to, _ := os.Readlink(fd)
		kind, _, _ := strings.Cut(to, ":[")
		count[kind]++
	}
	return count
}

// resident is a process's memory in bytes.
func resident(t *testing.T, pid int) (bytes int) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	do(t, err)
	var size, pages int
	if _, err := fmt.Sscan(string(b), &size, &pages); err != nil {
		t.Fatal(err)
	}
	return pages * os.Getpagesize()
}

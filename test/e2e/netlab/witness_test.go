package netlab

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meshvirt/meshvirt/test/e2e/netlab/agent"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/packet"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/vm"
)

// A witness sees packets by the tags in them, whether or not anybody answers: those that the pod's kernel
// delivers to the pod's own sockets, behind all its rules (raw sockets get a copy of each), and those
// that leave the pod, on the other end of its cable.
type witness struct {
	t       *testing.T
	pod     []rawSocket
	outside int
	seen    map[string]map[string]bool // by tag: "pod", or "out" and the source
}

type rawSocket struct {
	fd       int
	protocol int
}

// witnessed are the protocols for which the pod's kernel is asked.
var witnessed = map[int][]int{
	unix.AF_INET:  {packet.ICMP, packet.IPIP, packet.TCP, packet.UDP, packet.IPv6, packet.GRE, packet.ESP, packet.SCTP, packet.UDPLite},
	unix.AF_INET6: {packet.ICMPv6, packet.IPIP, packet.TCP, packet.UDP, packet.IPv6, packet.GRE, packet.ESP, packet.SCTP, packet.UDPLite},
}

func newWitness(t *testing.T, l *Lab) *witness {
	t.Helper()
	w := &witness{t: t, outside: -1, seen: map[string]map[string]bool{}}
	t.Cleanup(func() {
		for _, s := range w.pod {
			unix.Close(s.fd)
		}
		unix.Close(w.outside)
	})
	do(t, l.pod.Do(func() error {
		for family, protocols := range witnessed {
			for _, p := range protocols {
				fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, p)
				if err != nil {
					return fmt.Errorf("raw socket for protocol %d: %w", p, err)
				}
				w.pod = append(w.pod, rawSocket{fd, p})
			}
		}
		return w.join()
	}), l.node.Do(func() error {
		link, err := net.InterfaceByName("pod")
		if err != nil {
			return err
		}
		all := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL))
		if w.outside, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, int(all)); err != nil {
			return err
		}
		return unix.Bind(w.outside, &unix.SockaddrLinklayer{Protocol: all, Ifindex: link.Index})
	}))
	return w
}

// join makes the bridge take what is for DHCPv6 servers, as KubeVirt's does.
func (w *witness) join() error {
	link, err := net.InterfaceByName(Bridge)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	w.t.Cleanup(func() { unix.Close(fd) })
	return unix.SetsockoptIPv6Mreq(fd, unix.IPPROTO_IPV6, unix.IPV6_JOIN_GROUP,
		&unix.IPv6Mreq{Multiaddr: netip.MustParseAddr("ff02::1:2").As16(), Interface: uint32(link.Index)})
}

// A tag is a fixed number of bytes, so that every packet can have one at its place.
const (
	tagMark = "<mv"
	tagSize = 16
)

func tag(run, i int) string { return fmt.Sprintf("%s%05d:%06d>", tagMark, run, i) }

// read takes what came until now.
func (w *witness) read() {
	b := make([]byte, 4096)
	drain := func(fd int, where func(b []byte, from unix.Sockaddr) string) {
		for {
			n, from, err := unix.Recvfrom(fd, b, 0)
			if errors.Is(err, unix.EAGAIN) {
				return
			}
			if err != nil {
				w.t.Fatalf("witness: %v", err)
			}
			for rest := b[:n]; ; {
				i := bytes.Index(rest, []byte(tagMark))
				if i < 0 || i+tagSize > len(rest) {
					break
				}
				t := string(rest[i : i+tagSize])
				if w.seen[t] == nil {
					w.seen[t] = map[string]bool{}
				}
				if s := where(b[:n], from); s != "" {
					w.seen[t][s] = true
				}
				rest = rest[i+tagSize:]
			}
		}
	}
	for _, s := range w.pod {
		drain(s.fd, func([]byte, unix.Sockaddr) string { return "pod" })
	}
	drain(w.outside, func(b []byte, from unix.Sockaddr) string {
		if sa, ok := from.(*unix.SockaddrLinklayer); ok && sa.Pkttype == unix.PACKET_OUTGOING {
			return "" // to the pod
		}
		if src, ok := source(b); ok {
			return "out " + src.String()
		}
		return "out"
	})
}

// source is that of an IP packet.
func source(b []byte) (netip.Addr, bool) {
	if len(b) >= 20 && b[0]>>4 == 4 {
		return netip.AddrFromSlice(b[12:16])
	}
	if len(b) >= 40 && b[0]>>4 == 6 {
		return netip.AddrFromSlice(b[8:24])
	}
	return netip.Addr{}, false
}

// where tells where a tag was seen.
func (w *witness) where(tag string) string {
	return strings.Join(slices.Sorted(maps.Keys(w.seen[tag])), ", ")
}

// sentinels are packets that leave the pod in every lab. They are on their way behind the frames of an
// attempt, so that once they were seen, these had their chance.
func sentinels(number int) []packet.IP {
	udp := func(from, to netip.Addr) packet.IP {
		return packet.NewUDP(at(from, uint16(number)), at(to, UDPPort), []byte(tag(number, 0)))
	}
	return []packet.IP{udp(GuestIP4, PeerIP4), udp(GuestIP6, PeerIP6)}
}

// after sends frames and then sentinels, and returns once the witness has seen these. Each call wants
// another number, which is the sentinels' port. They are sent again until they are seen: on a busy machine it
// takes a while until a new guest's link and its neighbours are there.
func (w *witness) after(ctx context.Context, l *Lab, number int, frames ...agent.Frame) {
	w.t.Helper()
	var again []agent.Frame
	for _, p := range sentinels(number) {
		again = append(again, frame(p.Bytes()))
	}
	frames = append(frames, again...)
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); frames = again {
		do(w.t, l.Guest.Send(ctx, agent.Send{Link: vm.Link, Frames: frames}))
		for range 100 {
			if w.read(); len(w.seen[tag(number, 0)]) == 2 {
				w.read() // what was heard in the pod meanwhile
				return
			}
			time.Sleep(2 * time.Millisecond)
		}
	}
	w.t.Fatalf("packets that must always pass did not: seen %q", w.where(tag(number, 0)))
}

// echo is a ping whose data is a tag.
func echo(src, dst netip.Addr, id uint16, tag string) packet.IP {
	kind := byte(8)
	if src.Is6() {
		kind = 128
	}
	return packet.NewICMP(src, dst, kind, 0, append(binary.BigEndian.AppendUint16([]byte{byte(id >> 8), byte(id)}, 1), tag...))
}

// frame is the guest's frame to its gateway.
func frame(b []byte) agent.Frame {
	kind := uint16(unix.ETH_P_IP)
	if b[0]>>4 == 6 {
		kind = unix.ETH_P_IPV6
	}
	return agent.Frame{To: bridgeMAC, Type: kind, Body: b}
}

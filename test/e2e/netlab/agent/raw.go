package agent

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meshvirt/meshvirt/test/e2e/netlab/packet"
)

func (m *methods) Raw(r Raw, out *RawAnswer) error {
	link, err := net.InterfaceByName(r.Link)
	if err != nil {
		return err
	}
	to, err := net.ParseMAC(r.To)
	if err != nil {
		return err
	}
	b, err := r.packet()
	if err != nil {
		return err
	}
	ipv4 := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_IP))
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(ipv4))
	if err != nil {
		return fmt.Errorf("packet socket: %w", err)
	}
	defer unix.Close(fd)
	sa := &unix.SockaddrLinklayer{Protocol: ipv4, Ifindex: link.Index, Halen: 6}
	if err := unix.Bind(fd, sa); err != nil {
		return fmt.Errorf("bind packet socket: %w", err)
	}
	copy(sa.Addr[:], to)
	if err := unix.Sendto(fd, b, 0, sa); err != nil {
		return fmt.Errorf("send packet: %w", err)
	}
	deadline := time.Now().Add(r.Timeout)
	b = make([]byte, 2048)
	for {
		left := time.Until(deadline)
		if left <= 0 {
			return nil
		}
		tv := unix.NsecToTimeval(left.Nanoseconds() + 1000)
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
			return err
		}
		n, err := unix.Read(fd, b)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("read packet: %w", err)
		}
		if out.Flags = r.answer(b[:n]); out.Flags != "" {
			return nil
		}
	}
}

// fullTries bounds the attempts, a millisecond apart, to send a frame to a device whose queue is full.
const fullTries = 2000

// packet is the IPv4 packet to send.
func (r Raw) packet() ([]byte, error) {
	if !r.Src.Addr().Is4() || !r.Dst.Addr().Is4() {
		return nil, errors.New("want IPv4 addresses")
	}
	switch r.Network {
	case "tcp":
		return packet.NewTCP(r.Src, r.Dst, packet.SYN, uint32(time.Now().UnixNano()), nil).Bytes(), nil
	case "udp":
		payload, err := json.Marshal(ask{Token: r.Token})
		if err != nil {
			return nil, err
		}
		return packet.NewUDP(r.Src, r.Dst, payload).Bytes(), nil
	}
	return nil, fmt.Errorf("network is %q, want tcp or udp", r.Network)
}

// answer tells what an IPv4 packet from r.Dst to r.Src is, and gives "" for another packet.
func (r Raw) answer(b []byte) string {
	if len(b) < 20 || len(b) < int(b[0]&15)*4+20 && b[9] == unix.IPPROTO_TCP {
		return ""
	}
	l4 := b[int(b[0]&15)*4:]
	if len(l4) < 8 ||
		netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[12:16])), binary.BigEndian.Uint16(l4)) != r.Dst ||
		netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[16:20])), binary.BigEndian.Uint16(l4[2:])) != r.Src {
		return ""
	}
	switch {
	case b[9] == unix.IPPROTO_UDP && r.Network == "udp":
		return "udp"
	case b[9] != unix.IPPROTO_TCP || r.Network != "tcp":
		return ""
	case l4[13]&packet.RST != 0:
		return "rst"
	case l4[13]&(packet.SYN|packet.ACK) == packet.SYN|packet.ACK:
		return "syn-ack"
	}
	return ""
}

func (m *methods) Send(s Send, out *bool) error {
	*out = true
	link, err := net.InterfaceByName(s.Link)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("packet socket: %w", err)
	}
	defer unix.Close(fd)
	// On one processor: what receives on another one might change their order.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var allowed, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &allowed); err != nil {
		return fmt.Errorf("ask for processors: %w", err)
	}
	for i := 0; one.Count() == 0; i++ {
		if allowed.IsSet(i) {
			one.Set(i)
		}
	}
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		return fmt.Errorf("keep to a processor: %w", err)
	}
	defer unix.SchedSetaffinity(0, &allowed)
	for _, f := range s.Frames {
		to, err := net.ParseMAC(f.To)
		if err != nil {
			return err
		}
		b := append(append([]byte{}, to...), link.HardwareAddr...)
		b = append(binary.BigEndian.AppendUint16(b, f.Type), f.Body...)
		err = unix.Sendto(fd, b, 0, &unix.SockaddrLinklayer{Ifindex: link.Index})
		for tries := 0; errors.Is(err, unix.ENOBUFS) && tries < fullTries; tries++ { // the other end is slower than we
			time.Sleep(time.Millisecond)
			err = unix.Sendto(fd, b, 0, &unix.SockaddrLinklayer{Ifindex: link.Index})
		}
		if err != nil {
			return fmt.Errorf("send frame: %w", err)
		}
	}
	return nil
}

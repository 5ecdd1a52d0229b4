package agent

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

const (
	tcpSYN = 0x02
	tcpRST = 0x04
	tcpACK = 0x10
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
	packet, err := r.packet()
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
	if err := unix.Sendto(fd, packet, 0, sa); err != nil {
		return fmt.Errorf("send packet: %w", err)
	}
	deadline := time.Now().Add(r.Timeout)
	b := make([]byte, 2048)
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

// packet is the IPv4 packet to send.
func (r Raw) packet() ([]byte, error) {
	if !r.Src.Addr().Is4() || !r.Dst.Addr().Is4() {
		return nil, errors.New("want IPv4 addresses")
	}
	var proto byte
	var l4 []byte
	sum := 0
	switch r.Network {
	case "tcp":
		proto, sum = unix.IPPROTO_TCP, 16
		l4 = make([]byte, 20)
		binary.BigEndian.PutUint32(l4[4:], uint32(time.Now().UnixNano()))
		l4[12], l4[13] = 5<<4, tcpSYN
		binary.BigEndian.PutUint16(l4[14:], 65535)
	case "udp":
		proto, sum = unix.IPPROTO_UDP, 6
		payload, err := json.Marshal(ask{Token: r.Token})
		if err != nil {
			return nil, err
		}
		l4 = append(make([]byte, 8), payload...)
		binary.BigEndian.PutUint16(l4[4:], uint16(len(l4)))
	default:
		return nil, fmt.Errorf("network is %q, want tcp or udp", r.Network)
	}
	binary.BigEndian.PutUint16(l4, r.Src.Port())
	binary.BigEndian.PutUint16(l4[2:], r.Dst.Port())
	src, dst := r.Src.Addr().As4(), r.Dst.Addr().As4()
	pseudo := append(append(append([]byte{}, src[:]...), dst[:]...), 0, proto, byte(len(l4)>>8), byte(len(l4)))
	binary.BigEndian.PutUint16(l4[sum:], checksum(append(pseudo, l4...)))

	ip := make([]byte, 20)
	ip[0], ip[8], ip[9] = 4<<4|5, 64, proto
	binary.BigEndian.PutUint16(ip[2:], uint16(20+len(l4)))
	copy(ip[12:], src[:])
	copy(ip[16:], dst[:])
	binary.BigEndian.PutUint16(ip[10:], checksum(ip))
	return append(ip, l4...), nil
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
	case l4[13]&tcpRST != 0:
		return "rst"
	case l4[13]&(tcpSYN|tcpACK) == tcpSYN|tcpACK:
		return "syn-ack"
	}
	return ""
}

// checksum is the one's complement sum of RFC 1071.
func checksum(b []byte) uint16 {
	var s uint32
	for i := 0; i+1 < len(b); i += 2 {
		s += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		s += uint32(b[len(b)-1]) << 8
	}
	for s>>16 != 0 {
		s = s&0xffff + s>>16
	}
	return ^uint16(s)
}

// Package sockopt names the socket options that the relay needs: one function each, whose comment
// says which error to expect and which capability the kernel asks for. Only
// Transparent needs one.
//
// All take a raw file descriptor, because the relay owns its sockets without net.Conn.
package sockopt

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// soOriginalDst is SO_ORIGINAL_DST and IP6T_SO_ORIGINAL_DST (linux/netfilter_ipv4.h and
// linux/netfilter_ipv6/ip6_tables.h), which share one number at two levels.
const soOriginalDst = 80

// OriginalDst gives the destination that a TCP connection had before netfilter's REDIRECT or DNAT.
// v6 says that the peer's address is a true IPv6 one: a connection over IPv4 is tracked as such even
// if it was accepted on a [::] socket, and must be asked for at level SOL_IP. Without translation it
// is the socket's own address.
//
// No capability. ENOENT: the connection is not tracked (notrack, or it outlived its entry).
// ENOPROTOOPT: the kernel lacks conntrack for the family.
func OriginalDst(fd int, v6 bool) (netip.AddrPort, error) {
	// The two x/sys wrappers are taken for their size only: the kernel asks for a buffer of at least
	// 16 (sockaddr_in) and 28 (sockaddr_in6) bytes, they bring 20 and 32.
	if v6 {
		sa, err := unix.GetsockoptIPv6MTUInfo(fd, unix.SOL_IPV6, soOriginalDst)
		if err != nil {
			return netip.AddrPort{}, os.NewSyscallError("getsockopt SOL_IPV6/SO_ORIGINAL_DST", err)
		}
		var port [2]byte // in network order in the struct's memory
		binary.NativeEndian.PutUint16(port[:], sa.Addr.Port)
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr.Addr).Unmap(), binary.BigEndian.Uint16(port[:])), nil
	}
	m, err := unix.GetsockoptIPv6Mreq(fd, unix.SOL_IP, soOriginalDst)
	if err != nil {
		return netip.AddrPort{}, os.NewSyscallError("getsockopt SOL_IP/SO_ORIGINAL_DST", err)
	}
	sa := m.Multiaddr // the raw sockaddr_in: family, port, address
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte(sa[4:8])), binary.BigEndian.Uint16(sa[2:4])), nil
}

// Error takes the pending error of a socket, such as why a connect failed (SO_ERROR), and clears it.
// It is nil if there is none. No capability.
func Error(fd int) error {
	n, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return os.NewSyscallError("getsockopt SO_ERROR", err)
	}
	if n != 0 {
		return unix.Errno(n)
	}
	return nil
}

// NoDelay sends small segments at once (TCP_NODELAY): delaying them is the end points' business, not
// a relay's. Sockets accepted from a listener inherit it. No capability, and no error to expect.
func NoDelay(fd int) error { return set(fd, "TCP_NODELAY", unix.SOL_TCP, unix.TCP_NODELAY, 1) }

// KeepAlive asks the peer for a sign of life after idle (whole seconds, 1 to 32767) without a segment
// (SO_KEEPALIVE, TCP_KEEPIDLE). The kernel then probes net.ipv4.tcp_keepalive_probes times (9) every
// net.ipv4.tcp_keepalive_intvl (75 s) before the socket fails with ETIMEDOUT. Sockets accepted from a
// listener inherit both. No capability. EINVAL: idle is out of range.
func KeepAlive(fd int, idle time.Duration) error {
	if err := set(fd, "SO_KEEPALIVE", unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1); err != nil {
		return err
	}
	return set(fd, "TCP_KEEPIDLE", unix.SOL_TCP, unix.TCP_KEEPIDLE, int(idle/time.Second))
}

// UserTimeout fails the socket with ETIMEDOUT if what was sent, a SYN included, is not acknowledged
// within d, in milliseconds (TCP_USER_TIMEOUT). Zero restores the kernel's own patience, which is
// about two minutes for a SYN and a quarter of an hour for data. No capability. EINVAL: d is negative.
func UserTimeout(fd int, d time.Duration) error {
	return set(fd, "TCP_USER_TIMEOUT", unix.SOL_TCP, unix.TCP_USER_TIMEOUT, int(d/time.Millisecond))
}

// ResetOnClose makes close(2), and the end of the process, send RST and drop what was not sent (SO_LINGER, zero
// seconds), or no longer. Sockets accepted from a listener inherit it. No capability, and no error to expect.
func ResetOnClose(fd int, reset bool) error {
	var linger unix.Linger
	if reset {
		linger.Onoff = 1
	}
	return os.NewSyscallError("setsockopt SO_LINGER", unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &linger))
}

// ReuseAddr lets a listener bind while connections of an earlier one are in TIME_WAIT (SO_REUSEADDR).
// No capability, and no error to expect.
func ReuseAddr(fd int) error { return set(fd, "SO_REUSEADDR", unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) }

// ReusePort lets several listeners of one user share a port; the kernel spreads connections over
// them (SO_REUSEPORT). No capability, and no error to expect.
func ReusePort(fd int) error { return set(fd, "SO_REUSEPORT", unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) }

// DualStack lets an AF_INET6 socket bound to [::] take IPv4 too, whatever net.ipv6.bindv6only says
// (IPV6_V6ONLY). No capability. EINVAL: the socket is bound already.
func DualStack(fd int) error { return set(fd, "IPV6_V6ONLY", unix.SOL_IPV6, unix.IPV6_V6ONLY, 0) }

// Transparent lets a listener take connections whose destination is not the pod's, which TPROXY gives
// it (IP_TRANSPARENT, one flag for both families). Sockets accepted from it inherit that, and have the
// destination as their own address. CAP_NET_RAW or CAP_NET_ADMIN, for this call alone. EPERM: without.
func Transparent(fd int) error { return set(fd, "IP_TRANSPARENT", unix.SOL_IP, unix.IP_TRANSPARENT, 1) }

// LocalAddr gives the socket's own address: of one accepted from a transparent listener, where its
// client wanted to go. No capability, and no error to expect.
func LocalAddr(fd int) (netip.AddrPort, error) {
	sa, err := unix.Getsockname(fd)
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port)), nil
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port)), nil
	}
	return netip.AddrPort{}, os.NewSyscallError("getsockname", err)
}

// BindNoPort makes bind(2) to port 0 take no port (IP_BIND_ADDRESS_NO_PORT, for both families). Such
// a socket can be bound again and again. No capability. ENOPROTOOPT: a kernel older than 4.2.
func BindNoPort(fd int) error {
	return set(fd, "IP_BIND_ADDRESS_NO_PORT", unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
}

// PacketInfo makes every datagram bring a control message with the address that it was sent to and the
// interface that it came in by (IP_PKTINFO, IPV6_RECVPKTINFO). The same message, sent along with the
// answer, gives it that address as its source and that interface as its way. v6 says that the socket is
// an AF_INET6 one, which tells so of IPv4 datagrams as well. No capability, and no error to expect.
func PacketInfo(fd int, v6 bool) error {
	if v6 {
		return set(fd, "IPV6_RECVPKTINFO", unix.SOL_IPV6, unix.IPV6_RECVPKTINFO, 1)
	}
	return set(fd, "IP_PKTINFO", unix.SOL_IP, unix.IP_PKTINFO, 1)
}

func set(fd int, name string, level, option, value int) error {
	if err := unix.SetsockoptInt(fd, level, option, value); err != nil {
		return fmt.Errorf("setsockopt %s = %d: %w", name, value, err)
	}
	return nil
}

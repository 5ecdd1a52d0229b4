package proxy

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/meshvirt/meshvirt/pkg/sockopt"
)

// Reason says why a connection was refused. It is the value of the metric's label and the log's key.
type Reason string

// The reasons. The guest must not reach through the relay what only the pod itself may reach: the
// admin port of the mesh's proxy on the loopback address, the node's link-local services such as
// cloud metadata, or the relay.
const (
	Loopback    Reason = "loopback"
	LinkLocal   Reason = "link-local"
	Multicast   Reason = "multicast"
	Broadcast   Reason = "broadcast"
	Unspecified Reason = "unspecified" // connects to the loopback address
	Guest       Reason = "guest"       // the guest's own address
	Local       Reason = "local"       // an address of the pod, by whatever interface
	NotLocal    Reason = "not-local"   // inbound, but not sent to the pod
	OwnPort     Reason = "own-port"    // a port of the relay: most often a connection that nobody redirected
	NoGuest     Reason = "no-guest"    // the guest has no address in this family
	Untracked   Reason = "untracked"   // the kernel does not know the original destination
	Full        Reason = "full"        // as many connections as there are descriptors for
)

// Reasons lists every reason to refuse a connection.
var Reasons = []Reason{
	Loopback, LinkLocal, Multicast, Broadcast, Unspecified, Guest, Local, NotLocal, OwnPort, NoGuest, Untracked, Full,
}

// A policy decides by original destination. Addresses are never IPv4-mapped here, except in tests.
type policy struct {
	guest4, guest6 netip.Addr // invalid if the guest has none
	own            [3]uint16
	nameservers    []netip.Addr // the pod's
	// bind returns nil if an address is local, EADDRNOTAVAIL if it is not.
	bind func(netip.Addr) error
}

// outbound says why the guest may not connect to dst, or "".
func (p policy) outbound(dst netip.AddrPort) Reason {
	a := dst.Addr().Unmap()
	switch {
	case a.IsUnspecified():
		return Unspecified
	case a.IsLoopback():
		return Loopback
	case a.IsLinkLocalUnicast() && !p.dns(a, dst.Port()):
		return LinkLocal
	case a.IsMulticast():
		return Multicast
	case a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return Broadcast
	case a == p.guest4, a == p.guest6:
		return Guest
	case !errors.Is(p.bind(a), unix.EADDRNOTAVAIL): // local, or in doubt
		return Local
	}
	return ""
}

// dns reports whether it is DNS of a nameserver of the pod, which the guest has from KubeVirt's DHCP. On
// nodes with a cache (NodeLocal DNSCache) that is link-local.
func (p policy) dns(a netip.Addr, port uint16) bool {
	return port == 53 && slices.Contains(p.nameservers, a)
}

// inbound gives the guest's address and port for a connection that the mesh's proxy meant for dst,
// or says why not.
func (p policy) inbound(dst netip.AddrPort) (netip.AddrPort, Reason) {
	a := dst.Addr().Unmap()
	guest := p.guest6
	if a.Is4() {
		guest = p.guest4
	}
	switch {
	case slices.Contains(p.own[:], dst.Port()):
		return dst, OwnPort
	case p.bind(a) != nil: // not local, or in doubt
		return dst, NotLocal
	case !guest.IsValid():
		return dst, NoGuest
	}
	return netip.AddrPortFrom(guest, dst.Port()), ""
}

// A localProbe asks the kernel whether an address is local, by trying to bind a socket to it without
// a port. One cheap call per connection, and never out of date: a list of addresses would have to be
// kept so, and would lack local routes (127.0.0.0/8, ip route add local). IPv4 broadcast and
// multicast addresses count as local. An IPv6 route of type local without an address does not.
type localProbe struct{ fd4, fd6 int }

// nobody's addresses: the IPv4 dummy address (RFC 7600) and one of the IPv6 discard prefix (RFC 6666).
var nobody4, nobody6 = netip.MustParseAddr("192.0.0.8"), netip.MustParseAddr("100::1")

// newLocalProbe fails if the kernel lets sockets bind to any address, so that it could not tell.
func newLocalProbe() (_ *localProbe, err error) {
	p := &localProbe{fd4: -1, fd6: -1}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	if p.fd4, err = bindSocket(unix.AF_INET); err != nil {
		return nil, err
	}
	if p.bind(nobody4) == nil {
		return nil, errors.New("cannot tell which addresses are local: net.ipv4.ip_nonlocal_bind is 1, want 0")
	}
	p.fd6, err = bindSocket(unix.AF_INET6)
	if errors.Is(err, unix.EAFNOSUPPORT) {
		return p, nil // without IPv6 nobody asks for it
	}
	if err != nil {
		return nil, err
	}
	if p.bind(nobody6) == nil {
		return nil, errors.New("cannot tell which addresses are local: net.ipv6.ip_nonlocal_bind is 1, want 0")
	}
	return p, nil
}

func bindSocket(family int) (int, error) {
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	if err := sockopt.BindNoPort(fd); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("prepare to find local addresses: %w", err)
	}
	return fd, nil
}

func (p *localProbe) bind(a netip.Addr) error {
	fd := p.fd6
	if a.Is4() {
		fd = p.fd4
	}
	return unix.Bind(fd, sockopt.Sockaddr(netip.AddrPortFrom(a, 0)))
}

func (p *localProbe) close() {
	for _, fd := range []int{p.fd4, p.fd6} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
	p.fd4, p.fd6 = -1, -1
}

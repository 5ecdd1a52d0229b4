// Package dns forwards a virtual machine's DNS queries over UDP from inside its pod, so that whatever
// capture the mesh has for the pod's own queries takes them: any mesh's, over IPv4 and IPv6. Our
// nftables table redirects the guest's queries to the forwarder, and translates its answers back, so that they
// come from the server that the guest asked. Over TCP the relay does the same.
//
// Datagrams are opaque: nothing here knows what is in a query. Each client (an address and port of the guest)
// has a socket of its own, connected to the server: the kernel gives it a random port and takes nothing from
// anybody else, so that who is not on the path has to guess as much as with the pod's own queries.
//
// One goroutine owns everything, as in package proxy: read Run, then forward.go.
package dns

import (
	"container/list"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"github.com/meshvirt/meshvirt/pkg/sockopt"
)

// serverPort is where DNS servers listen (RFC 1035).
const serverPort = 53

// Config says what to forward.
type Config struct {
	// Port takes what the guest sends to the first of Servers, the next ports what it sends to the others.
	Port uint16
	// Servers are the pod's nameservers; at least one.
	Servers []netip.Addr
	// Guest holds the guest's addresses, and Interfaces the names of those by which its packets come in.
	// What comes from elsewhere is dropped. No Interfaces means any. SetGuest replaces both.
	Guest      []netip.Addr
	Interfaces []string
	// Clients bounds the clients that are remembered at a time, one descriptor each; who was silent longest
	// makes place. Zero means MaxClients.
	Clients int
	// Idle is how long a client is remembered after its last datagram in either direction. Zero means 10 s,
	// twice of what resolvers wait for an answer.
	Idle time.Duration
	// Metrics takes the forwarder's. Nil means that nobody wants them.
	Metrics prometheus.Registerer
}

// MaxClients is a thousand queries that are under way at once.
const MaxClients = 1024

// Descriptors is how many descriptors a forwarder for that many servers may hold.
func Descriptors(servers, clients int) int { return 2 + servers + clients }

// sweep is how often clients that have been idle for too long are looked for.
const sweep = time.Second

// Forwarder forwards. Make one with New.
type Forwarder struct {
	cfg     Config
	metrics *metrics

	epoll     int
	listeners []listener
	clients   map[key]*client
	byFD      map[int]*client
	silent    list.List    // of *client: who would be the first to make place is in front
	waiting   int          // queries without an answer
	buf       []byte       // one datagram, of whatever size
	oob       []byte       // its control message
	devices   map[int]bool // whether a device, by its index, is one of from
	from      *guest
	guest     atomic.Pointer[guest]
	swept     time.Time

	wake     *os.File // an eventfd: a File, because Stop may write to it while it is closed
	wakeFD   int
	deadline atomic.Int64 // of what is under way, in Unix nanoseconds; zero before Stop
}

// A listener takes the queries to one server.
type listener struct {
	fd     int
	server netip.AddrPort
}

// A guest is who may ask.
type guest struct {
	addrs      []netip.Addr
	interfaces []string
}

// SetGuest replaces Config.Guest and Config.Interfaces, at any time.
func (f *Forwarder) SetGuest(addrs []netip.Addr, interfaces []string) {
	f.guest.Store(&guest{addrs, interfaces})
}

// New opens the listeners, so that a port in use is known at once; queries wait until Run.
func New(cfg Config) (_ *Forwarder, err error) {
	if cfg.Clients <= 0 {
		cfg.Clients = MaxClients
	}
	if cfg.Idle <= 0 {
		cfg.Idle = 10 * time.Second
	}
	if len(cfg.Servers) == 0 {
		return nil, errors.New("no nameserver: want one to ask")
	}
	f := &Forwarder{
		cfg: cfg, epoll: -1, wakeFD: -1, clients: map[key]*client{}, byFD: map[int]*client{}, devices: map[int]bool{},
		buf: make([]byte, 1<<16), oob: make([]byte, unix.CmsgSpace(unix.SizeofInet6Pktinfo)),
	}
	f.SetGuest(cfg.Guest, cfg.Interfaces)
	if f.metrics, err = newMetrics(cfg.Metrics); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	if f.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	if f.wakeFD, err = unix.Eventfd(0, unix.EFD_CLOEXEC); err != nil {
		return nil, os.NewSyscallError("eventfd", err)
	}
	f.wake = os.NewFile(uintptr(f.wakeFD), "eventfd")
	if err := f.watch(f.wakeFD); err != nil {
		return nil, err
	}
	for i, server := range cfg.Servers {
		port := cfg.Port + uint16(i)
		fd, err := listen(port)
		if err != nil {
			return nil, fmt.Errorf("listen for DNS queries on port %d: %w", port, err)
		}
		f.listeners = append(f.listeners, listener{fd, netip.AddrPortFrom(server, serverPort)})
		if err := f.watch(fd); err != nil {
			return nil, err
		}
	}
	return f, nil
}

// Run forwards until Stop. It returns nil after that, and an error if it cannot go on. It can be called
// once.
func (f *Forwarder) Run() error {
	defer f.Close()
	events := make([]unix.EpollEvent, 64)
	for !f.done() {
		n, err := unix.EpollWait(f.epoll, events, f.timeout())
		if err != nil && err != unix.EINTR {
			return os.NewSyscallError("epoll_wait", err)
		}
		for _, ev := range events[:max(n, 0)] {
			f.handle(int(ev.Fd))
		}
		if now := time.Now(); now.Sub(f.swept) >= sweep {
			f.forgetIdle(now)
			f.swept = now
		}
	}
	return nil
}

// timeout is how long, in milliseconds, Run may sleep if nothing happens.
func (f *Forwarder) timeout() int {
	if deadline := f.deadline.Load(); deadline != 0 {
		return int(min(time.Until(time.Unix(0, deadline)), sweep)/time.Millisecond) + 1
	}
	if len(f.clients) > 0 {
		return int(sweep / time.Millisecond)
	}
	return -1
}

// done reports whether, after Stop, nothing is waited for any more.
func (f *Forwarder) done() bool {
	deadline := f.deadline.Load()
	return deadline != 0 && (f.waiting == 0 || time.Now().UnixNano() >= deadline)
}

// Stop lets no further query in, and Run return once those under way are answered, given up, or within
// has passed.
func (f *Forwarder) Stop(within time.Duration) {
	f.deadline.Store(time.Now().Add(within).UnixNano())
	_, _ = f.wake.Write([]byte{7: 1}) // any number but zero, in either byte order; fails only if closed
}

// handle is for a descriptor of which epoll says that it can be read.
func (f *Forwarder) handle(fd int) {
	if fd == f.wakeFD { // Stop: listeners stay open, because answers are sent by them
		for _, l := range f.listeners {
			_ = unix.EpollCtl(f.epoll, unix.EPOLL_CTL_DEL, l.fd, nil)
		}
		_ = unix.EpollCtl(f.epoll, unix.EPOLL_CTL_DEL, f.wakeFD, nil)
		return
	}
	if i := slices.IndexFunc(f.listeners, func(l listener) bool { return l.fd == fd }); i >= 0 {
		f.query(i)
		return
	}
	if c := f.byFD[fd]; c != nil { // else closed by an earlier event of this batch
		f.answer(c)
	}
}

// fromGuest reports whether a datagram with this sender and control message is the guest's own.
func (f *Forwarder) fromGuest(from netip.Addr, oob []byte) bool {
	g := f.guest.Load()
	if !slices.Contains(g.addrs, from) {
		return false
	}
	if f.from != g {
		f.from, f.devices = g, map[int]bool{}
	}
	return len(g.interfaces) == 0 || f.isGuests(device(oob))
}

// isGuests reports whether a device, by its index, is one of the guest's. The kernel uses no index twice in
// a pod's life, and what has sent a datagram exists.
func (f *Forwarder) isGuests(index int) bool {
	known, ok := f.devices[index]
	if !ok {
		d, err := net.InterfaceByIndex(index)
		if err != nil {
			return false
		}
		known = slices.Contains(f.from.interfaces, d.Name)
		f.devices[index] = known
	}
	return known
}

// Close releases what the forwarder holds. It is for a forwarder that never ran, and of no effect after Run.
func (f *Forwarder) Close() {
	for _, c := range f.byFD {
		f.forget(c, Stopped)
	}
	for _, l := range f.listeners {
		unix.Close(l.fd)
	}
	f.listeners = nil
	if f.epoll >= 0 {
		unix.Close(f.epoll)
		f.epoll = -1
	}
	if f.wake != nil {
		f.wake.Close() // again is an error, and nothing else
	}
}

// watch registers a descriptor that is read from. Closing it is what removes it.
func (f *Forwarder) watch(fd int) error {
	ev := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}
	return os.NewSyscallError("epoll_ctl", unix.EpollCtl(f.epoll, unix.EPOLL_CTL_ADD, fd, &ev))
}

// listen opens a socket on every address, of both families where the kernel has both.
func listen(port uint16) (int, error) {
	fd, err := listenOn(netip.IPv6Unspecified(), port)
	if errors.Is(err, unix.EAFNOSUPPORT) { // a kernel without IPv6
		return listenOn(netip.IPv4Unspecified(), port)
	}
	return fd, err
}

func listenOn(any netip.Addr, port uint16) (int, error) {
	fd, err := socket(any)
	if err != nil {
		return -1, err
	}
	err = sockopt.PacketInfo(fd, any.Is6())
	if any.Is6() {
		err = errors.Join(err, sockopt.DualStack(fd))
	}
	if err == nil {
		err = os.NewSyscallError("bind", unix.Bind(fd, sockopt.Sockaddr(netip.AddrPortFrom(any, port))))
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// socket opens a socket of a's family.
func socket(a netip.Addr) (int, error) {
	family := unix.AF_INET6
	if a.Is4() {
		family = unix.AF_INET
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	return fd, os.NewSyscallError("socket", err)
}

// device is the index of the interface that a control message of sockopt.PacketInfo tells of, 0 if none.
func device(oob []byte) int {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil || len(messages) == 0 {
		return 0
	}
	m := messages[0]
	switch {
	case m.Header.Level == unix.SOL_IPV6 && m.Header.Type == unix.IPV6_PKTINFO && len(m.Data) == unix.SizeofInet6Pktinfo:
		return int(native32(m.Data[16:])) // struct in6_pktinfo: address, index
	case m.Header.Level == unix.SOL_IP && m.Header.Type == unix.IP_PKTINFO && len(m.Data) == unix.SizeofInet4Pktinfo:
		return int(native32(m.Data)) // struct in_pktinfo: index, two addresses
	}
	return 0
}

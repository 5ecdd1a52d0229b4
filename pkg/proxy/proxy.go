// Package proxy relays TCP connections between a virtual machine and the mesh of its pod. It runs in
// the pod's network namespace as a user of its own, without any capability.
//
// Outbound, our nftables table redirects the guest's connections to the relay, which dials their
// original destination from inside the pod: whatever redirection the mesh has for the pod's own
// traffic then catches them. (Or TPROXY brings them, see Config.Transparent.) Inbound, the table redirects what the mesh's proxy sends to the pod's
// own address, and the relay dials the same port of the guest.
//
// # Design
//
// One goroutine per loop owns an epoll descriptor, its listeners, every connection it accepted, one
// buffer and a few pipes; it shares nothing but counters. An idle connection costs two descriptors
// and a few hundred bytes. Read in this order: loop.go (events), dial.go (how a connection becomes a
// flow), relay.go (how a flow's bytes move), refuse.go (what is never dialled).
//
// There is no idle time-out: a connection lives as long as its two ends do, as it would without a
// relay. Keep-alive finds the ends that are gone.
package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meshvirt/meshvirt/pkg/bridge"
	"github.com/meshvirt/meshvirt/pkg/dns"
)

// Config says what to relay. The ports and addresses are those of plan.Proxy and plan.Guest.
type Config struct {
	// OutboundPort takes the guest's connections and InboundPort those of the mesh's proxy, on every
	// address. StatusPort is only refused as a destination: Handler is served by the caller.
	OutboundPort, InboundPort, StatusPort uint16
	// Transparent says that TPROXY brings the guest's connections to OutboundPort, with the address that
	// they had. New then needs CAP_NET_RAW, once; otherwise they come redirected, and it needs none.
	Transparent bool
	// GuestIPv4 and GuestIPv6 are the guest's addresses. Inbound connections of a family in which
	// the guest has none are refused. Settle replaces them.
	GuestIPv4, GuestIPv6 netip.Addr
	// DNSPort takes the guest's DNS queries over UDP to the first of Nameservers, the next ports those to
	// the others. Zero means that they are not forwarded.
	DNSPort uint16
	// Nameservers are those of the pod. The guest may connect to their port 53 even if they are link-local.
	Nameservers []netip.Addr
	// Interfaces are the names of those by which the guest's queries come in. None means any.
	Interfaces []string
	// Drain bounds how long open connections may go on once Run's context is done. Zero or less cuts
	// them at once.
	Drain time.Duration
	// DialTimeout bounds how long a destination may take to accept. Zero means 10 s; negative leaves
	// it to the kernel, which gives up after about two minutes.
	DialTimeout time.Duration
	// Loops is the number of event loops, each busy on one CPU at most. Zero means 1, which is
	// fastest on up to two CPUs; connections are spread over more by SO_REUSEPORT.
	Loops int
	// Log takes at most 20 lines a second about flows that failed. Nil means slog.Default().
	Log *slog.Logger
}

// reservedFiles are descriptors that no flow may take: standard streams, the runtime's own and the
// status server's. Without them, a full table would fail the liveness probe and so cut every flow.
const reservedFiles = 128

// The states of a Proxy, which /readyz tells.
const (
	starting int32 = iota
	serving
	draining
)

// Proxy is the relay. Make one with New.
type Proxy struct {
	cfg     Config
	local   *localProbe
	policy  atomic.Pointer[policy]
	metrics *metrics
	loops   []*loop
	dns     *dns.Forwarder // nil if there is nothing to forward
	state   atomic.Int32
	unready atomic.Pointer[error]
}

// New opens the listeners, so that a port in use is known at once; connections wait until Run.
func New(cfg Config) (_ *Proxy, err error) {
	if cfg.DialTimeout == 0 {
		cfg.DialTimeout = 10 * time.Second
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	cfg.Loops = max(cfg.Loops, 1)
	limit, clients, err := shares(cfg)
	if err != nil {
		return nil, err
	}
	local, err := newLocalProbe()
	if err != nil {
		return nil, err
	}
	p := &Proxy{cfg: cfg, local: local}
	p.policy.Store(&policy{
		guest4: cfg.GuestIPv4, guest6: cfg.GuestIPv6,
		own:         [...]uint16{cfg.OutboundPort, cfg.InboundPort, cfg.StatusPort},
		nameservers: cfg.Nameservers,
		bind:        local.bind,
	})
	p.metrics = newMetrics(p.lag)
	if cfg.forwards() {
		p.dns, err = dns.New(dns.Config{
			Port: cfg.DNSPort, Servers: cfg.Nameservers, Clients: clients,
			Guest: []netip.Addr{cfg.GuestIPv4, cfg.GuestIPv6}, Interfaces: cfg.Interfaces, Metrics: p.metrics.registry,
		})
		if err != nil {
			p.close()
			return nil, err
		}
	}
	for range cfg.Loops {
		l, err := newLoop(p, limit)
		if err != nil {
			p.close()
			return nil, err
		}
		p.loops = append(p.loops, l)
	}
	return p, nil
}

// Settle takes what was found of the guest in the running pod: its addresses and interfaces for the
// connections and queries to come, and what contradicts the plan for /readyz and /metrics. It is for one caller at a time.
func (p *Proxy) Settle(s bridge.Settled) {
	guest := s.Plan.Guest
	next := *p.policy.Load()
	next.guest4, next.guest6 = guest.IPv4, guest.IPv6
	p.policy.Store(&next)
	if p.dns != nil {
		p.dns.SetGuest([]netip.Addr{guest.IPv4, guest.IPv6}, s.Plan.Interfaces)
	}
	err := s.Contradicted()
	p.unready.Store(&err)
	for _, w := range bridge.Whats {
		p.metrics.contradicted.WithLabelValues(string(w)).Set(0)
	}
	for _, c := range s.Contradictions {
		p.metrics.contradicted.WithLabelValues(string(c.What)).Set(1)
	}
}

// forwards reports whether there are DNS queries to forward.
func (c Config) forwards() bool { return c.DNSPort != 0 && len(c.Nameservers) > 0 }

// shares divides the descriptors: the number of flows that each loop has some for, and of DNS clients.
// DNS gets no more than an eighth.
func shares(cfg Config) (flows, clients int, err error) {
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		return 0, 0, fmt.Errorf("read RLIMIT_NOFILE: %w", err)
	}
	all, reserved := int(min(files.Cur, 1<<30)), reservedFiles
	if cfg.forwards() {
		clients = max(min(dns.MaxClients, all/8), 1)
		reserved += dns.Descriptors(len(cfg.Nameservers), clients)
	}
	n := cfg.Loops
	flows = ((all-reserved)/n - loopFiles) / 2
	if flows < 1 {
		return 0, 0, fmt.Errorf("RLIMIT_NOFILE is %d, want more than %d", files.Cur, reserved+n*(loopFiles+2))
	}
	return flows, clients, nil
}

// Run relays until ctx is done, then drains: listening sockets close, open connections go on up to
// Config.Drain, the rest is cut with RST. The guest's DNS goes on as long, and queries under way
// at the end get their answers, within the same time. Run returns nil after that, and an error if a part cannot
// go on. It can be called once.
func (p *Proxy) Run(ctx context.Context) error {
	defer p.close()
	ended, forwarded := make(chan error, len(p.loops)), make(chan error, 1)
	for _, l := range p.loops {
		go func() { ended <- l.run() }()
	}
	if p.dns != nil {
		go func() { forwarded <- p.dns.Run() }()
	}
	p.state.Store(serving)

	var errs []error
	missing, drain := len(p.loops), p.cfg.Drain
	failed := func(err error) { errs, drain = append(errs, err), 0 }
	select {
	case <-ctx.Done():
	case err := <-ended:
		missing--
		failed(err)
	case err := <-forwarded:
		forwarded <- err
		failed(err)
	}
	p.state.Store(draining)
	started := time.Now()
	for _, l := range p.loops {
		l.post(context.Background(), l.drain)
	}
	deadline := time.AfterFunc(drain, func() {
		for _, l := range p.loops {
			l.post(context.Background(), l.cut)
		}
	})
	defer deadline.Stop()
	for range missing {
		errs = append(errs, <-ended)
	}
	if p.dns != nil {
		p.dns.Stop(drain - time.Since(started))
		errs = append(errs, <-forwarded)
	}
	p.cfg.Log.Info("drained", "seconds", time.Since(started).Seconds())
	return errors.Join(errs...)
}

// lag is how long the slowest loop took to answer a call just now; up to a second, which also stands
// for no answer.
func (p *Proxy) lag() time.Duration {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	started := time.Now()
	if p.ping(ctx) != nil {
		return time.Second
	}
	return time.Since(started)
}

// ping returns nil once every loop has answered.
func (p *Proxy) ping(ctx context.Context) error {
	for i, l := range p.loops {
		answer := make(chan struct{})
		l.post(ctx, func() { close(answer) })
		select {
		case <-answer:
		case <-l.ended:
			return fmt.Errorf("event loop %d has ended", i)
		case <-ctx.Done():
			return fmt.Errorf("event loop %d does not answer: %w", i, ctx.Err())
		}
	}
	return nil
}

func (p *Proxy) close() {
	if p.dns != nil {
		p.dns.Close()
	}
	for _, l := range p.loops {
		l.close()
	}
	p.local.close()
}

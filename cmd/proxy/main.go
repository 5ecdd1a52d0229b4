// Command proxy is the relay of the modes nat-proxy and tproxy: a native sidecar of the virtual
// machine's pod that needs no argument, no file but /etc/resolv.conf, and no capability but, in mode tproxy,
// NET_RAW, which it gives up once it listens. It does what the plan in its environment says.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"golang.org/x/net/netutil"

	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/proxy"
	"github.com/meshvirt/meshvirt/pkg/resolv"
)

// statusConnections bounds the status server, which the pod's network can reach, so that it stays
// within the descriptors that pkg/proxy leaves free.
const statusConnections = 64

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	if err := run(ctx, os.Args[1:], os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "meshvirt proxy:", err)
		os.Exit(1)
	}
}

// run relays until ctx is done and open connections have finished or had their time. The soft limit
// of descriptors needs no care: the Go runtime raises it to the hard one.
func run(ctx context.Context, args []string, out io.Writer) error {
	if len(args) > 0 {
		return fmt.Errorf("unexpected argument %q: want none, and a plan in %s", args[0], plan.Env)
	}
	p, err := plan.Decode(os.Getenv(plan.Env))
	if err != nil {
		return fmt.Errorf("%w (%s is written by the MeshVirt webhook: recreate the pod with webhook and image of one release)", err, plan.Env)
	}
	if p.Proxy == nil {
		return fmt.Errorf("the plan's mode is %q: want %q or %q, or a pod without this container", p.Mode, plan.NATProxy, plan.TProxy)
	}
	nameservers, err := resolv.Nameservers(resolv.Conf)
	if err != nil {
		return err
	}
	log := slog.New(slog.NewJSONHandler(out, nil))
	status, err := net.Listen("tcp", fmt.Sprintf(":%d", p.Proxy.StatusPort))
	if err != nil {
		return fmt.Errorf("serve status: %w: want port %d free in the pod", err, p.Proxy.StatusPort)
	}
	defer status.Close()
	relay, err := proxy.New(proxy.Config{
		OutboundPort: p.Proxy.OutboundPort,
		InboundPort:  p.Proxy.InboundPort,
		StatusPort:   p.Proxy.StatusPort,
		GuestIPv4:    p.Guest.IPv4,
		GuestIPv6:    p.Guest.IPv6,
		DNSPort:      p.Proxy.DNSPort,
		Nameservers:  nameservers,
		Interfaces:   p.Interfaces,
		Drain:        time.Duration(p.Proxy.DrainSeconds) * time.Second,
		Transparent:  p.Mode == plan.TProxy,
		Log:          log,
	})
	if err != nil {
		return fmt.Errorf("%w: nothing is relayed", err)
	}
	if p.Mode == plan.TProxy {
		if err := dropCapabilities(); err != nil {
			return err
		}
	}
	server := &http.Server{
		Handler:           relay.Handler(),
		ReadHeaderTimeout: 5 * time.Second,
		WriteTimeout:      10 * time.Second,
		IdleTimeout:       90 * time.Second,
		MaxHeaderBytes:    8 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
	served := make(chan error, 1)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		defer cancel() // a relay that nobody can watch must not stay
		served <- server.Serve(netutil.LimitListener(status, statusConnections))
	}()
	log.Info("relaying", "release", plan.Release, "outboundPort", p.Proxy.OutboundPort, "inboundPort", p.Proxy.InboundPort,
		"statusPort", p.Proxy.StatusPort, "dnsPort", p.Proxy.DNSPort, "nameservers", nameservers, "guestIPv4", p.Guest.IPv4, "guestIPv6", p.Guest.IPv6)

	looked, followed := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(followed)
		follow(ctx, p, relay, log, sync.OnceFunc(func() { close(looked) }))
	}()
	select {
	case <-looked: // else it would be ready before it knows
	case <-ctx.Done():
	}
	err = relay.Run(ctx)
	cancel()
	<-followed
	server.Close()
	if e := <-served; !errors.Is(e, http.ErrServerClosed) {
		err = errors.Join(err, fmt.Errorf("serve status: %w", e))
	}
	return err
}

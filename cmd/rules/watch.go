package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"golang.org/x/net/netutil"

	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/resolv"
	"github.com/meshvirt/meshvirt/pkg/rules"
)

// statusConnections bounds the status server, which the pod's network can reach.
const statusConnections = 16

// watch keeps the rules of p until ctx is done, and serves /readyz and /livez meanwhile. It is ready
// once the table is written, also if the interfaces are still to come: KubeVirt makes them only after
// the pod's containers have started, and until then nothing gets past the rules.
func watch(ctx context.Context, p plan.Plan, out io.Writer) error {
	status, err := net.Listen("tcp", fmt.Sprintf(":%d", p.WatchPort))
	if err != nil {
		return fmt.Errorf("serve status: %w: want port %d free in the pod", err, p.WatchPort)
	}
	s := state{err: errors.New("nothing was written yet")}
	server := &http.Server{Handler: s.handler(), ReadHeaderTimeout: 5 * time.Second, WriteTimeout: 10 * time.Second, IdleTimeout: 90 * time.Second, MaxHeaderBytes: 8 << 10}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	served := make(chan error, 1)
	go func() {
		defer cancel() // who cannot be asked must not stay
		served <- server.Serve(netutil.LimitListener(status, statusConnections))
	}()
	rules.Keep(ctx, p, resolv.Conf, func(w rules.Written) {
		s.set(w.Err)
		if w.Err != nil {
			fmt.Fprintf(out, "%s: %v; next attempt follows\n", name, w.Err)
			return
		}
		fmt.Fprintf(out, "%s, interface present %t\n", summary(p, w.Pod, w.Rules), w.Present)
	})
	server.Close()
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve status: %w", err)
	}
	return nil
}

// state is how the last attempt ended.
type state struct {
	mu  sync.Mutex
	err error
}

func (s *state) set(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

func (s *state) handler() http.Handler {
	mux := http.NewServeMux()
	ok := func(w http.ResponseWriter) { fmt.Fprintln(w, "ok") }
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { ok(w) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.err != nil {
			http.Error(w, s.err.Error(), http.StatusServiceUnavailable)
			return
		}
		ok(w)
	})
	return mux
}

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/netutil"

	"github.com/meshvirt/meshvirt/pkg/bridge"
	"github.com/meshvirt/meshvirt/pkg/keeper"
	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/resolv"
)

// statusConnections bounds the status server, which the pod's network can reach.
const statusConnections = 16

// watch keeps the rules of p until ctx is done, and serves /metrics, /readyz and /livez meanwhile. It is
// alive and ready once the table is written, also if the interfaces are still to come: KubeVirt makes them only after
// the pod's containers have started, and until then nothing gets past the rules. It is not ready while the
// last attempt has failed, or the pod contradicts the plan.
func watch(ctx context.Context, p plan.Plan, out io.Writer) error {
	status, err := net.Listen("tcp", fmt.Sprintf(":%d", p.WatchPort))
	if err != nil {
		return fmt.Errorf("serve status: %w: want port %d free in the pod", err, p.WatchPort)
	}
	s := newState()
	server := &http.Server{Handler: s.handler(), ReadHeaderTimeout: 5 * time.Second, WriteTimeout: 10 * time.Second, IdleTimeout: 90 * time.Second, MaxHeaderBytes: 8 << 10}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	served := make(chan error, 1)
	go func() {
		defer cancel() // who cannot be asked must not stay
		served <- server.Serve(netutil.LimitListener(status, statusConnections))
	}()
	keeper.Keep(ctx, p, resolv.Conf, func(w keeper.Written) {
		s.set(w)
		if w.Err != nil {
			fmt.Fprintf(out, "%s: %v; next attempt follows\n", name, w.Err)
			return
		}
		fmt.Fprintf(out, "%s, interface %s present %t\n", summary(w.Plan, w.Pod, w.Rules), strings.Join(w.Plan.Interfaces, ","), w.Present)
		if err := w.Contradicted(); err != nil {
			fmt.Fprintf(out, "%s: %v\n", name, err)
		}
	})
	server.Close()
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve status: %w", err)
	}
	return nil
}

// state is how the last attempt ended, and what /metrics tells of all.
type state struct {
	mu              sync.Mutex
	err             error
	written, failed int
	contradicted    map[bridge.What]bool
}

func newState() *state { return &state{err: errors.New("nothing was written yet")} }

func (s *state) set(w keeper.Written) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err = w.Err; s.err != nil {
		s.failed++
		return
	}
	s.written++
	s.err, s.contradicted = w.Contradicted(), map[bridge.What]bool{}
	for _, c := range w.Contradictions {
		s.contradicted[c.What] = true
	}
}

// metrics writes the text format of Prometheus. Its library, and what that needs, would be a third of the
// program for numbers that one sees here.
func (s *state) metrics(w http.ResponseWriter, _ *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w.Header().Set("Content-Type", "text/plain; version=0.0.4")
	family := func(name, kind, help string) { fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind) }
	const writes, contradicted = "meshvirt_rules_writes_total", "meshvirt_rules_contradicted"
	family(writes, "counter", "Attempts to write the rules.")
	fmt.Fprintf(w, "%s{result=\"failed\"} %d\n%s{result=\"written\"} %d\n", writes, s.failed, writes, s.written)
	family(contradicted, "gauge", "1 if what was found in the pod contradicts this part of the plan.")
	for _, what := range bridge.Whats {
		value := 0
		if s.contradicted[what] {
			value = 1
		}
		fmt.Fprintf(w, "%s{what=%q} %d\n", contradicted, what, value)
	}
}

func (s *state) handler() http.Handler {
	mux := http.NewServeMux()
	answer := func(w http.ResponseWriter, bad bool, why error) {
		if bad {
			http.Error(w, why.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	}
	mux.HandleFunc("GET /metrics", s.metrics)
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		answer(w, s.written == 0, s.err)
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		answer(w, s.err != nil, s.err)
	})
	return mux
}

package proxy

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/meshvirt/meshvirt/pkg/bridge"
)

// direction tells the guest's connections from those to the guest.
type direction int

const (
	outbound direction = iota
	inbound
)

func (d direction) String() string { return [...]string{"outbound", "inbound"}[d] }

// metrics holds every counter ready to be incremented: nothing is looked up by label per flow but for
// flows that fail. All series exist from the start, so that their first increment is seen.
type metrics struct {
	registry     *prometheus.Registry
	acceptErrors prometheus.Counter
	wakeups      prometheus.Counter
	contradicted *prometheus.GaugeVec // by bridge.What
	of           [2]flowMetrics       // by direction
}

type flowMetrics struct {
	opened, resets         prometheus.Counter
	open                   prometheus.Gauge
	fromClient, fromServer prometheus.Counter
	refused                map[Reason]prometheus.Counter
	dialFailures           map[string]prometheus.Counter
}

func newMetrics(lag func() time.Duration) *metrics {
	m := &metrics{registry: prometheus.NewRegistry()}
	const ns = "meshvirt_proxy_"
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: ns + name, Help: help}, labels)
		m.registry.MustRegister(v)
		return v
	}
	open := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: ns + "connections_open", Help: "Connections being relayed.",
	}, []string{"direction"})
	m.registry.MustRegister(open, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: ns + "loop_lag_seconds", Help: "Time that the slowest event loop took to answer at this scrape, at most 1.",
	}, func() float64 { return lag().Seconds() }))

	m.contradicted = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: ns + "contradicted", Help: "1 if what was found in the pod contradicts this part of the plan.",
	}, []string{"what"})
	m.registry.MustRegister(m.contradicted)
	for _, w := range bridge.Whats {
		m.contradicted.WithLabelValues(string(w))
	}
	opened := counter("connections_total", "Connections relayed, from the moment that the dial began.", "direction")
	resets := counter("resets_total", "Connections that ended by an error of one side, which the other saw as a reset.", "direction")
	bytes := counter("bytes_total", "Bytes relayed, by the side that they came from: client is the side that connected.", "direction", "from")
	refused := counter("refused_total", "Connections reset because of their destination or for want of descriptors.", "direction", "reason")
	failed := counter("dial_failures_total", "Connections reset because the dial failed.", "direction", "reason")
	m.acceptErrors = counter("accept_errors_total", "Errors of accept that were survived.").WithLabelValues()
	m.wakeups = counter("loop_wakeups_total", "Rounds of the event loops.").WithLabelValues()

	for i := range m.of {
		dir, d := direction(i).String(), &m.of[i]
		d.opened, d.resets = opened.WithLabelValues(dir), resets.WithLabelValues(dir)
		d.open = open.WithLabelValues(dir)
		d.fromClient, d.fromServer = bytes.WithLabelValues(dir, "client"), bytes.WithLabelValues(dir, "server")
		d.refused = map[Reason]prometheus.Counter{}
		for _, r := range Reasons {
			d.refused[r] = refused.WithLabelValues(dir, string(r))
		}
		d.dialFailures = map[string]prometheus.Counter{dialOther: failed.WithLabelValues(dir, dialOther)}
		for _, r := range dialReasons {
			d.dialFailures[r] = failed.WithLabelValues(dir, r)
		}
	}
	return m
}

// Handler serves /metrics, /readyz (200 while connections are accepted and the pod is
// as planned, else 503 and why) and /livez
// (200 if every event loop answers within a few seconds).
func (p *Proxy) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(p.metrics.registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		switch p.state.Load() {
		case serving:
			if err := p.unready.Load(); err != nil && *err != nil {
				http.Error(w, (*err).Error(), http.StatusServiceUnavailable)
				return
			}
			fmt.Fprintln(w, "ok")
		case draining:
			http.Error(w, "draining: open connections may finish, new ones are refused", http.StatusServiceUnavailable)
		default:
			http.Error(w, "starting: connections wait", http.StatusServiceUnavailable)
		}
	})
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), 5*time.Second)
		defer cancel()
		if err := p.ping(ctx); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	return mux
}

package dns

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// Reason says why a datagram was dropped. It is the value of the metric's label.
type Reason string

// The reasons. Those of queries that got no answer are counted when that is certain.
const (
	Stranger    Reason = "stranger"    // not sent by the guest, or not by its interface
	Refused     Reason = "refused"     // the server's host answered with an ICMP error
	Unanswered  Reason = "unanswered"  // no answer until the client was forgotten
	Evicted     Reason = "evicted"     // no answer until another client needed the place
	Exhausted   Reason = "exhausted"   // no descriptor, memory or room in a socket's buffer
	Unreachable Reason = "unreachable" // the kernel has no way to the server, or to the guest
	Stopped     Reason = "stopped"     // no answer until the forwarder had to end
)

// Reasons lists every reason to drop a datagram.
var Reasons = []Reason{Stranger, Refused, Unanswered, Evicted, Exhausted, Unreachable, Stopped}

// metrics holds every counter ready to be incremented; all series exist from the start.
type metrics struct {
	queries, answers prometheus.Counter
	clients          prometheus.Gauge
	dropped          map[Reason]prometheus.Counter
}

func newMetrics(to prometheus.Registerer) (*metrics, error) {
	const ns = "meshvirt_proxy_dns_"
	m := &metrics{
		queries: prometheus.NewCounter(prometheus.CounterOpts{Name: ns + "queries_total", Help: "DNS queries over UDP that the guest sent."}),
		answers: prometheus.NewCounter(prometheus.CounterOpts{Name: ns + "answers_total", Help: "Answers that were sent to the guest."}),
		clients: prometheus.NewGauge(prometheus.GaugeOpts{Name: ns + "clients", Help: "Ports of the guest that have a socket, because they asked not long ago."}),
		dropped: map[Reason]prometheus.Counter{},
	}
	dropped := prometheus.NewCounterVec(prometheus.CounterOpts{Name: ns + "dropped_total", Help: "Datagrams that were dropped, and queries that got no answer."}, []string{"reason"})
	for _, r := range Reasons {
		m.dropped[r] = dropped.WithLabelValues(string(r))
	}
	if to == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.queries, m.answers, m.clients, dropped} {
		if err := to.Register(c); err != nil {
			return nil, fmt.Errorf("register metrics: %w", err)
		}
	}
	return m, nil
}

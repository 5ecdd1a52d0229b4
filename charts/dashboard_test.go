package charts_test

import (
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/meshvirt/meshvirt/pkg/admit"
	"github.com/meshvirt/meshvirt/pkg/mutate"
)

// Every metric of the dashboard is one that the programs have.
func TestDashboardAsksForOurMetrics(t *testing.T) {
	var dashboard struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	read(t, "meshvirt/dashboards/meshvirt.json", &dashboard)
	known := metrics(t)
	name := regexp.MustCompile(`meshvirt_[a-z_]+`)
	asked := map[string]bool{}
	for _, p := range dashboard.Panels {
		if len(p.Targets) == 0 {
			t.Errorf("panel %q asks for nothing", p.Title)
		}
		for _, target := range p.Targets {
			for _, m := range name.FindAllString(target.Expr, -1) {
				if m = strings.TrimSuffix(m, "_bucket"); !known[m] {
					t.Errorf("panel %q asks for %s, which no program has", p.Title, m)
				}
				asked[m] = true
			}
		}
	}
	for _, m := range []string{"meshvirt_admission_requests_total", "meshvirt_admission_duration_seconds", "meshvirt_proxy_connections_open"} {
		if !asked[m] {
			t.Errorf("no panel asks for %s", m)
		}
	}
}

// metrics gives the names of the webhook's metrics, by asking, and of the relay's, by its source: a
// relay needs a plan and sockets.
func metrics(t *testing.T) map[string]bool {
	t.Helper()
	names := map[string]bool{}
	registry := registerer{names: names}
	admit.New(mutate.Config{}, slog.New(slog.DiscardHandler), registry)
	source, err := os.ReadFile(filepath.Join("..", "pkg", "proxy", "metrics.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`(?:counter\(|ns \+ )"([a-z_]+)"`).FindAllSubmatch(source, -1) {
		names["meshvirt_proxy_"+string(m[1])] = true
	}
	return names
}

// registerer notes names: a vector without series would not show when metrics are gathered.
type registerer struct {
	prometheus.Registerer
	names map[string]bool
}

func (r registerer) MustRegister(collectors ...prometheus.Collector) {
	name := regexp.MustCompile(`fqName: "([^"]+)"`)
	for _, c := range collectors {
		descriptions := make(chan *prometheus.Desc, 8)
		c.Describe(descriptions)
		close(descriptions)
		for d := range descriptions {
			if m := name.FindStringSubmatch(d.String()); m != nil {
				r.names[m[1]] = true
			}
		}
	}
}

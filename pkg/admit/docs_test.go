package admit

import (
	"log/slog"
	"os"
	"regexp"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/client-go/rest"
)

// described is a registry that notes what it is given: one that is asked gives no metric before it counted.
type described struct {
	*prometheus.Registry
	names []string
}

var fqName = regexp.MustCompile(`fqName: "([^"]+)"`)

func (d *described) MustRegister(all ...prometheus.Collector) {
	for _, c := range all {
		descriptions := make(chan *prometheus.Desc, 10)
		c.Describe(descriptions)
		close(descriptions)
		for one := range descriptions {
			d.names = append(d.names, fqName.FindStringSubmatch(one.String())[1])
		}
	}
	d.Registry.MustRegister(all...)
}

func TestMetricsAreDocumented(t *testing.T) {
	d := &described{Registry: prometheus.NewRegistry()}
	New(config, slog.New(slog.DiscardHandler), d)
	if _, err := NewCluster(&rest.Config{Host: "http://127.0.0.1:1"}, slog.New(slog.DiscardHandler), d); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	var documented []string
	for _, row := range regexp.MustCompile("(?m)^\\| `(meshvirt_[a-z_]+)`").FindAllSubmatch(b, -1) {
		if name := string(row[1]); !regexp.MustCompile("^meshvirt_(proxy|rules|certificate)_").MatchString(name) {
			documented = append(documented, name)
		}
	}
	slices.Sort(documented)
	slices.Sort(d.names)
	if diff := cmp.Diff(d.names, documented); diff != "" {
		t.Errorf("docs/metrics.md (-registered +documented)\n%s", diff)
	}
}

package proxy

import (
	"os"
	"regexp"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestMetricsAreDocumented(t *testing.T) {
	families, err := newMetrics(func() time.Duration { return 0 }).registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var registered, documented []string
	for _, f := range families {
		registered = append(registered, f.GetName())
	}
	b, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range regexp.MustCompile("(?m)^\\| `(meshvirt_proxy_[a-z_]+)`").FindAllSubmatch(b, -1) {
		documented = append(documented, string(row[1]))
	}
	slices.Sort(registered)
	slices.Sort(documented)
	if diff := cmp.Diff(registered, documented); diff != "" {
		t.Errorf("docs/metrics.md (-registered +documented)\n%s", diff)
	}
}

package main

import (
	"errors"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/meshvirt/meshvirt/pkg/bridge"
	"github.com/meshvirt/meshvirt/pkg/keeper"
	"github.com/meshvirt/meshvirt/pkg/plan"
)

func tproxyPlan(t *testing.T) string {
	t.Helper()
	p, err := plan.Decode(examplePlan(t))
	if err != nil {
		t.Fatal(err)
	}
	p.Mode, p.Proxy, p.WatchPort = plan.TProxy, &plan.Proxy{OutboundPort: 15101, InboundPort: 15106, StatusPort: 15120}, 15121
	s, err := p.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestStatus: ready is whose last attempt to write has worked and whose pod does not contradict the plan; alive is
// who has written once. That all is served, and that the rules follow the interface, test/e2e/netlab shows.
func TestStatus(t *testing.T) {
	s := newState()
	get := func(path string) (int, string) {
		w := httptest.NewRecorder()
		s.handler().ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		return w.Code, w.Body.String()
	}
	for _, path := range []string{"/readyz", "/livez"} {
		if code, text := get(path); code != 503 || !strings.Contains(text, "nothing was written") {
			t.Errorf("%s before anything: %d %q, want 503", path, code, text)
		}
	}
	failed := keeper.Written{Err: errors.New("no netlink today")}
	contradicted := keeper.Written{Settled: bridge.Settled{Contradictions: []bridge.Contradiction{
		{What: bridge.Guest, Text: "found 10.11.12.2, planned 10.0.2.2"}, {What: bridge.Mesh, Text: "found k6t-a, told k6t-b"},
	}}}
	for _, c := range []struct {
		last keeper.Written
		path string
		code int
		text string
	}{
		{failed, "/readyz", 503, "no netlink today"},
		{failed, "/livez", 503, "no netlink today"},
		{failed, "/metrics", 200, `meshvirt_rules_writes_total{result="failed"} 3`},
		{contradicted, "/readyz", 503, "found 10.11.12.2, planned 10.0.2.2; found k6t-a, told k6t-b"},
		{contradicted, "/livez", 200, "ok"},
		{contradicted, "/metrics", 200, `meshvirt_rules_contradicted{what="guest"} 1`},
		{contradicted, "/metrics", 200, `meshvirt_rules_contradicted{what="mesh"} 1`},
		{contradicted, "/metrics", 200, `meshvirt_rules_contradicted{what="interface"} 0`},
		{keeper.Written{}, "/readyz", 200, "ok"},
		{failed, "/livez", 200, "ok"},
		{keeper.Written{}, "/metrics", 200, `meshvirt_rules_contradicted{what="guest"} 0`},
	} {
		s.set(c.last)
		if code, text := get(c.path); code != c.code || !strings.Contains(text, c.text) {
			t.Errorf("%s after %v: %d %q, want %d and %q", c.path, c.last.Err, code, text, c.code, c.text)
		}
	}
}

func TestMetricsAreDocumented(t *testing.T) {
	w := httptest.NewRecorder()
	newState().handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	text := w.Body.String()
	if problems, err := promlint.New(strings.NewReader(text)).Lint(); err != nil || len(problems) > 0 {
		t.Errorf("Prometheus does not like it: %v, %v\n%s", err, problems, text)
	}
	var registered, documented []string
	for _, line := range regexp.MustCompile(`(?m)^# TYPE (\S+)`).FindAllStringSubmatch(text, -1) {
		registered = append(registered, line[1])
	}
	slices.Sort(registered)
	b, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range regexp.MustCompile("(?m)^\\| `(meshvirt_rules_[a-z_]+)`").FindAllSubmatch(b, -1) {
		documented = append(documented, string(row[1]))
	}
	slices.Sort(documented)
	if diff := cmp.Diff(registered, documented); diff != "" {
		t.Errorf("docs/metrics.md (-registered +documented)\n%s", diff)
	}
}

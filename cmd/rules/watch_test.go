package main

import (
	"errors"
	"net/http/httptest"
	"strings"
	"testing"

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

// TestStatus: ready is whose last attempt to write has worked; alive is who answers. That both are
// served, and that the rules follow the interface, test/e2e/netlab shows.
func TestStatus(t *testing.T) {
	s := state{err: errors.New("nothing yet")}
	get := func(path string) (int, string) {
		w := httptest.NewRecorder()
		s.handler().ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		return w.Code, w.Body.String()
	}
	for _, c := range []struct {
		last error
		path string
		code int
		text string
	}{
		{errors.New("no netlink today"), "/readyz", 503, "no netlink today"},
		{errors.New("no netlink today"), "/livez", 200, "ok"},
		{nil, "/readyz", 200, "ok"},
		{nil, "/metrics", 404, ""},
	} {
		s.set(c.last)
		if code, text := get(c.path); code != c.code || !strings.Contains(text, c.text) {
			t.Errorf("%s after %v: %d %q, want %d and %q", c.path, c.last, code, text, c.code, c.text)
		}
	}
}

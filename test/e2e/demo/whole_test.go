package main

import (
	"bytes"
	"regexp"
	"strings"
	"testing"

	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/tools"
)

// The whole demo keeps its promises, and its sibling in the same run, mode off, shows that the same
// checks tell broken from ok: these flows fail with Istio and KubeVirt alone.
func TestWholeDemo(t *testing.T) {
	if err := tools.Uses("charts/meshvirt", "cmd", "pkg", "test/e2e/netlab"); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := run(t.Context(), &out); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	_, summary, found := strings.Cut(out.String(), "Summary\n")
	if !found {
		t.Fatalf("no summary in\n%s", out.String())
	}
	columns := regexp.MustCompile(`\s{2,}`)
	off := map[string]string{}
	for _, e := range expectations {
		for _, line := range strings.Split(summary, "\n") {
			if c := columns.Split(strings.TrimSpace(line), -1); c[0] == e.name && len(c) == 5 {
				off[e.name] = c[2]
				if c[3] != "ok" || c[4] != "ok" {
					t.Errorf("%s: rules %s, nat-proxy %s; want ok", e.name, c[3], c[4])
				}
			}
		}
	}
	for name, want := range map[string]string{
		"TCP out, IPv4":            "ok",
		"TCP in, IPv4":             "ok",
		"TCP in, IPv6":             "fails",
		"SSH in (port 22)":         "past sidecar",
		"TCP out, excluded CIDR":   "through sidecar",
		"TCP out, excluded port":   "through sidecar",
		"UDP in, IPv4":             "fails",
		"DNS":                      "fails",
		"guest to pod's 127.0.0.1": "gets through",
	} {
		if off[name] != want {
			t.Errorf("mode off, %s: %q, want %q", name, off[name], want)
		}
	}
	if len(off) != len(expectations) {
		t.Errorf("the summary has %d of %d flows:\n%s", len(off), len(expectations), summary)
	}
}

// Mode tproxy, whose containers differ most, keeps the same promises from admission to packet.
func TestWholeDemoTProxy(t *testing.T) {
	if err := tools.Uses("charts/meshvirt", "cmd", "pkg", "test/e2e/netlab"); err != nil {
		t.Fatal(err)
	}
	shown, promising := modes, promised
	t.Cleanup(func() { modes, promised = shown, promising })
	modes, promised = []plan.Mode{plan.TProxy}, []plan.Mode{plan.TProxy}
	var out bytes.Buffer
	if err := run(t.Context(), &out); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	// The pod was in this mode, and not in another that keeps the same promises.
	if want := "meshvirt-rules -> meshvirt-proxy"; !strings.Contains(out.String(), want) || !strings.Contains(out.String(), "mode tproxy, because Requested") {
		t.Errorf("want %q in\n%s", want, out.String())
	}
}

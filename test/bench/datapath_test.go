package main

import (
	"bytes"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/test/lab"
)

// TestDataPath runs the whole suite with the shortest slices. Every path must carry data where it should
// (see path.verify), every figure be one, every goal be of a result, and the tables have all of it.
func TestDataPath(t *testing.T) {
	lab.NeedRoot(t)
	d := &dataPath{rounds: 1, slice: 20 * time.Millisecond, idle: 200, cidrs: []int{10}, log: t.Logf}
	results, err := d.run()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, r := range results {
		names = append(names, r.Name)
		for _, v := range []float64{r.Ours, r.Peer, r.Ratio} {
			// So few idle connections may fit into memory that is there.
			if math.IsNaN(v) || math.IsInf(v, 0) || v <= 0 && r.Unit != "bytes" {
				t.Errorf("%s: %v to %v is %v, want figures above zero", r.Name, r.Ours, r.Peer, r.Ratio)
			}
		}
	}
	for _, name := range []string{
		"egress, direct: connect p99", "egress, tproxy: bulk, 8", "ingress, nat-proxy: connections/s",
		"hop, io.Copy: CPU per GB, 8", "set-up, 10 CIDRs: meshvirt-rules to iptables-nft-restore",
	} {
		if !slices.Contains(names, name) {
			t.Errorf("no result %q among\n%s", name, strings.Join(names, "\n"))
		}
	}
	for name := range goals {
		if !slices.Contains(names, name) && !strings.HasPrefix(name, "set-up, 1000 ") {
			t.Errorf("a goal for %q, which is no result", name)
		}
	}
	page := readPage(t)
	got := filepath.Join(t.TempDir(), "page.md")
	if err := os.WriteFile(got, page, 0o600); err != nil {
		t.Fatal(err)
	}
	written, err := tables(results)
	if err != nil {
		t.Fatal(err)
	}
	if err := rewrite(got, written); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(got)
	if err != nil {
		t.Fatal(err)
	}
	for name, table := range written {
		if !bytes.Contains(b, []byte("<!-- bench:"+name+" -->\n"+table)) {
			t.Errorf("docs/performance.md has no place for the table %s", name)
		}
	}
}

func readPage(t *testing.T) []byte {
	t.Helper()
	b, err := os.ReadFile("../../docs/performance.md")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// A path whose relay is not there, or whose traffic goes past its sidecar, is no path.
func TestPathRefused(t *testing.T) {
	lab.NeedRoot(t)
	image, err := dataPlane(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		spoil func(*path)
		want  string
	}{
		"no relay":        {func(p *path) { kill(t, p) }, "load: connection 1 of 3"},
		"past the mesh":   {func(p *path) { p.alone = false }, "port 15001, want 3"},
		"another's relay": {func(p *path) { p.mode = plan.TProxy }, "want"},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := newPath(t.Context(), recipe{name: name, mode: plan.NATProxy, alone: true}, image)
			if err != nil {
				t.Fatal(err)
			}
			defer p.close()
			c.spoil(p)
			if err := p.verifyOnce(t.Context(), 3); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got error %v, want one with %q", err, c.want)
			}
		})
	}
}

func kill(t *testing.T, p *path) {
	t.Helper()
	process, err := os.FindProcess(p.relayPID)
	if err == nil {
		err = process.Kill()
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestVerdict(t *testing.T) {
	for _, c := range []struct {
		goal        string
		ours, ratio float64
		want        string
	}{
		{"", 1, 1, ""},
		{"<= 1.00", 9, 1.004, "OK"},
		{"<= 1.00", 9, 1.05, "EVEN"},
		{"<= 1.00", 9, 1.09, "MISSED"},
		{">= 1.00", 9, 1.5, "OK"},
		{">= 1.00", 9, 0.93, "EVEN"},
		{">= 1.00", 9, 0.91, "MISSED"},
		{"ours <= 1000", 999, 7, "OK"},
		{"ours <= 2.00", 2.5, 1, "MISSED"},
	} {
		got, err := Result{Goal: c.goal, Ours: c.ours, Ratio: c.ratio}.verdict()
		if err != nil || got != c.want {
			t.Errorf("goal %q, ours %v, ratio %v: %q (%v), want %q", c.goal, c.ours, c.ratio, got, err, c.want)
		}
	}
	if _, err := (Result{Goal: "fast"}).verdict(); err == nil {
		t.Error("a goal that is none is not refused")
	}
}

func TestTables(t *testing.T) {
	got, err := tables([]Result{
		{Name: "admission CPU", Ratio: 2},
		{Name: "hop, a: rate", Unit: "1/s", Ours: 3, Peer: 2, Ratio: 1.5, PeerName: "x", Goal: ">= 1.00"},
		{Name: "hop, a: time", Ratio: 0.5},
		{Name: "hop, b: rate", Ratio: 0.25},
		{Name: "idle, a: bytes", Unit: "bytes", Ours: 10, Peer: 20, Ratio: 0.5, Goal: "ours <= 5"},
	})
	want := map[string]string{
		"hop":  "| | rate | time |\n|---|---|---|\n| a | 1.50 | 0.50 |\n| b | 0.25 |  |\n",
		"idle": "| | bytes |\n|---|---|\n| a | 10 to 20 |\n",
		"goals": "| goal | wanted | measured | |\n|---|---|---|---|\n" +
			"| hop, a: rate | >= 1.00 | 1.50 times x | OK |\n| idle, a: bytes | <= 5 | 10 bytes | MISSED |\n",
	}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("error %v, (-want +got)\n%s", err, diff)
	}
}

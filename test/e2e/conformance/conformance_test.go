package main

import (
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/meshvirt/meshvirt/pkg/plan"
	testlab "github.com/meshvirt/meshvirt/test/lab"
	"github.com/meshvirt/meshvirt/tools"
)

// needRoot is for tests that make labs of this tree.
func needRoot(t *testing.T) {
	t.Helper()
	testlab.NeedRoot(t)
	if err := tools.Uses("cmd", "pkg", "test/corpus", "test/e2e/netlab"); err != nil {
		t.Fatal(err)
	}
}

func embedded(t *testing.T) (corpus, []setup) {
	t.Helper()
	c, err := openCorpus("")
	if err != nil {
		t.Fatal(err)
	}
	all, err := matrix(c, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	return c, all
}

// crossSection is what tests run: every mode, backend, flow, kind of KubeVirt's rules and family, the
// other axes as they come. The first gets the real guest.
func crossSection(t *testing.T, all []setup) []setup {
	t.Helper()
	var some []setup
	for i, pattern := range []string{
		`masquerade, istio 1\.31\S* \(dual-stack-env-dns, exclusions\) by nft, KubeVirt \S+-istio-noports-dual`,
		`masquerade, istio 1\.22\S* \(dual-stack-env-dns, exclusions\) by legacy, KubeVirt \S+-noistio-ports-22-80-dual`,
		`masquerade, istio 1\.29\S* \(native-nft-dual-stack, exclusions\) by nftables, KubeVirt \S+-noistio-noports-dual`,
		`masquerade, istio \S+ \(include-lists-k\)`,
		`masquerade, istio \S+ \(exclusions-k\)`,
		`masquerade, istio \S+ \(dns-capture-all\)`,
		`masquerade, istio .* KubeVirt \S+-noistio-legacy-migration`,
		`masquerade, istio .* KubeVirt \S+-istio-ports-udp`,
		`istio-ambient .*dual-reroute\S*, exclusions\) .* KubeVirt \S+-noistio-ports-22-80-dual`,
		`istio-ambient .*nodns, later, exclusions\)`,
		`passt, istio`,
		`masquerade, istio 1\.29\S* \(ipv6-only, exclusions\) by legacy, KubeVirt \S+-ipv6`,
		`masquerade, istio \S+ \(tproxy-k, exclusions\) by nft, KubeVirt \S+-istio-ports-22-80-dual`,
	} {
		j := slices.IndexFunc(all, func(s setup) bool { return !s.large && regexp.MustCompile(pattern).MatchString(s.String()) })
		if j < 0 {
			t.Fatalf("no pod %s in the matrix", pattern)
		}
		s := all[j]
		s.whole = i == 0
		some = append(some, s)
	}
	return some
}

func newTestRunner(t *testing.T, c corpus) *runner {
	t.Helper()
	r, err := newRunner(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestCrossSection(t *testing.T) {
	needRoot(t)
	c, all := embedded(t)
	r := newTestRunner(t, c)
	r.machines = 2
	rows, err := r.run(t.Context(), crossSection(t, all))
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range rows {
		if !row.OK {
			t.Errorf("%s %s (%s) by %s, KubeVirt %s, mode %s, guest %s: %s %s: want %s, got %s\n%s",
				row.Mesh, row.Version, row.Case, row.Backend, row.KubeVirt, row.Mode, row.Guest, row.Flow, row.Family, row.Want, row.Got, row.Path)
		}
	}

	// It is a cross-section of everything.
	pods := map[string]map[string]bool{}
	for _, row := range rows {
		if pods[row.Mode] == nil {
			pods[row.Mode] = map[string]bool{}
		}
		pods[row.Mode][row.Mesh+row.Version+row.Case+row.Backend+row.KubeVirt] = true
	}
	for _, mode := range []plan.Mode{plan.Native, plan.Rules, plan.NATProxy, plan.TProxy, plan.Ambient} {
		if n := len(pods[string(mode)]); n < 2 {
			t.Errorf("mode %s: %d pods, want two at least", mode, n)
		}
	}
	for name, of := range map[string]func(Row) string{
		"backend": func(r Row) string { return r.Backend },
		"family":  func(r Row) string { return r.Family },
		"guest":   func(r Row) string { return r.Guest },
	} {
		var got []string
		for _, row := range rows {
			if v := of(row); !slices.Contains(got, v) {
				got = append(got, v)
			}
		}
		slices.Sort(got)
		want := map[string][]string{"backend": {"legacy", "nft", "nftables"}, "family": {"ipv4", "ipv6"}, "guest": {"machine", "namespace", "process"}}
		if diff := cmp.Diff(want[name], got); diff != "" {
			t.Errorf("%s (-want +got)\n%s", name, diff)
		}
	}
	if !slices.ContainsFunc(rows, func(r Row) bool { return r.Mesh == sidecarMesh && r.Got == known }) {
		t.Error("no guest beside a sidecar saw its client, want those of a mesh that intercepts by TPROXY to")
	}
	sent := map[string]bool{}
	for _, row := range rows {
		sent[row.Flow] = true
	}
	for _, s := range all {
		for _, f := range s.flows() {
			if !sent[f.name] && !s.large {
				sent[f.name] = true
				t.Errorf("flow %s was not sent", f.name)
			}
		}
	}
}

// byTPROXY marks modes in a pod that the mesh intercepts so, inIPv6 those in one that has no IPv4.
const (
	byTPROXY = " by TPROXY"
	inIPv6   = " in IPv6 alone"
)

// TestCrossSectionFails: without MeshVirt's containers the cells that MeshVirt is for are not as wanted.
func TestCrossSectionFails(t *testing.T) {
	needRoot(t)
	c, all := embedded(t)
	r := newTestRunner(t, c)
	r.without = true
	some := crossSection(t, all)
	some = []setup{some[0], some[2], some[8], some[len(some)-2], some[len(some)-1]}
	some[0].whole = false
	rows, err := r.run(t.Context(), some)
	if err != nil {
		t.Fatal(err)
	}
	failed := map[plan.Mode][]string{}
	for _, row := range rows {
		mode := plan.Mode(row.Mode)
		switch {
		case strings.HasPrefix(row.Case, "tproxy"):
			mode += byTPROXY
		case strings.HasPrefix(row.Case, "ipv6-only"):
			mode += inIPv6
		}
		if !row.OK {
			failed[mode] = append(failed[mode], row.Flow)
		}
	}
	for mode, want := range map[plan.Mode]string{
		plan.Rules + byTPROXY:    "egress-pod ingress-listed probe attack-loopback",
		plan.NATProxy + byTPROXY: "egress-pod ingress-listed probe attack-loopback",
		plan.TProxy + byTPROXY:   "egress-pod ingress-listed probe attack-loopback",

		plan.Native + inIPv6:   "attack-gateway",
		plan.Rules + inIPv6:    "egress-pod ingress-listed probe udp-in hairpin attack-gateway",
		plan.NATProxy + inIPv6: "egress-pod ingress-listed probe udp-in hairpin attack-gateway",
		plan.TProxy + inIPv6:   "egress-pod ingress-listed probe udp-in hairpin attack-gateway",

		plan.Native:   "attack-gateway attack-loopback",
		plan.Rules:    "egress-pod egress-service egress-outside egress-banner egress-half-close ingress-listed ingress-ssh udp-in dns-udp hairpin attack-gateway attack-loopback",
		plan.NATProxy: "egress-pod egress-service egress-outside egress-banner egress-half-close ingress-listed ingress-ssh udp-in dns-udp dns-tcp attack-gateway attack-loopback",
		plan.TProxy:   "egress-pod egress-service egress-outside egress-banner egress-half-close ingress-listed ingress-ssh udp-in dns-udp dns-tcp attack-gateway attack-loopback",
		plan.Ambient:  "egress-pod egress-service ingress-listed tunnel dns-udp",
	} {
		for _, flow := range strings.Fields(want) {
			if !slices.Contains(failed[mode], flow) {
				t.Errorf("mode %s: no cell of flow %s failed, but %v", mode, flow, failed[mode])
			}
		}
	}
}

// TestGigabyte sends one each way through each relay, and by rules alone.
func TestGigabyte(t *testing.T) {
	needRoot(t)
	c, all := embedded(t)
	r := newTestRunner(t, c)
	r.parallel = 2
	i := slices.IndexFunc(all, func(s setup) bool { return s.large })
	rows, err := r.run(t.Context(), []setup{all[i]})
	if err != nil {
		t.Fatal(err)
	}
	sent := map[string]int{}
	for _, row := range rows {
		sent[row.Mode]++
		if !row.OK {
			t.Errorf("mode %s: %s: want %s, got %s\n%s", row.Mode, row.Flow, row.Want, row.Got, row.Path)
		}
	}
	if diff := cmp.Diff(map[string]int{"native": 2, "rules": 2, "nat-proxy": 2, "tproxy": 2}, sent); diff != "" {
		t.Errorf("flows by mode (-want +got)\n%s", diff)
	}
}

// promises are what the code says now, as lines of the tables.
func promises(all []setup) map[plan.Mode][]string {
	var rows []Row
	for _, s := range all {
		for _, mode := range s.modes() {
			for _, f := range s.flows() {
				want, why := wantOf(cell{s, f, mode})
				rows = append(rows, Row{Mode: string(mode), Family: f.family, Flow: f.name, Want: want, Why: why})
			}
		}
	}
	lines := map[plan.Mode][]string{}
	for _, mode := range plan.Modes {
		for _, l := range linesOf(rows, mode) {
			lines[mode] = append(lines[mode], l.promise())
		}
	}
	return lines
}

// TestDocumented compares docs/conformance.md with the table of wants. `make conformance` writes it.
func TestDocumented(t *testing.T) {
	root, err := tools.Root()
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(root, "docs", "conformance.md"))
	if err != nil {
		t.Fatal(err)
	}
	got, mode := map[plan.Mode][]string{}, plan.Mode("")
	for l := range strings.Lines(string(b)) {
		if name, found := strings.CutPrefix(l, "## Mode "); found {
			mode = plan.Mode(strings.TrimSpace(name))
		}
		if c := strings.Split(l, "|"); len(c) == 8 && c[1] != " flow " && c[1] != "---" {
			got[mode] = append(got[mode], strings.Join(c[:5], "|")+"|")
		}
	}
	_, all := embedded(t)
	want := promises(all)
	for mode := range want {
		if want[mode] == nil {
			delete(want, mode)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("docs/conformance.md is not of this table of wants, run make conformance (-want +got)\n%s", diff)
	}
}

// TestCorpusRefused: what a directory lacks is said.
func TestCorpusRefused(t *testing.T) {
	dir := t.TempDir()
	_, err := openCorpus(dir)
	if err == nil || !strings.Contains(err.Error(), "no directory istio-iptables") {
		t.Errorf("got %v, want the directory that is missing", err)
	}
	for _, part := range []string{"istio-iptables", "istio-ambient", "kubevirt-masquerade"} {
		if err := os.Mkdir(filepath.Join(dir, part), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	c, err := openCorpus(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err = matrix(c, io.Discard); err == nil || !strings.Contains(err.Error(), "kubevirt-masquerade: open cases.json") {
		t.Errorf("got %v, want the file that is missing", err)
	}
}

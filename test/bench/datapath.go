package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/templates"
	"github.com/meshvirt/meshvirt/test/e2e/netlab"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/container"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/netns"
)

// dataPath measures the ways of a guest's connections, in labs of network namespaces that all stand
// before the first is measured. What is compared is measured in turns, a slice of time each, in an order
// that is reversed every round.
type dataPath struct {
	rounds int           // odd, so that there is one in the middle
	slice  time.Duration // of one measurement
	idle   int           // connections to hold; fewer if descriptors do not suffice
	only   string        // sections, separated by commas; empty means all
	cidrs  []int         // numbers of excluded CIDRs to set up
	log    func(format string, args ...any)
}

// datapath is the suite as `make bench` runs it.
var datapath = &dataPath{cidrs: []int{10, 1_000, 20_000}, log: func(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "data path: "+format+"\n", args...)
}}

func (d *dataPath) flags(f *flag.FlagSet) {
	f.IntVar(&d.rounds, "rounds", 15, "rounds of the data path's measurements, an odd `number`")
	f.DurationVar(&d.slice, "slice", 300*time.Millisecond, "how long one measurement of the data path lasts")
	f.IntVar(&d.idle, "idle", 10_000, "idle connections to hold, a `number`")
	f.StringVar(&d.only, "sections", "", "measure only these `sections` of the data path, separated by commas: the first words of its results")
}

// wants reports whether a section is to be measured.
func (d *dataPath) wants(section string) bool {
	return d.only == "" || slices.Contains(strings.Split(d.only, ","), section)
}

// Sections, which results' names begin with.
const (
	egress     = "egress"
	ingress    = "ingress"
	hop        = "hop" // a relay without a mesh, so that its own hop is measured and nothing else
	exclusions = "exclusions"
	idle       = "idle" // the same with connections that carry nothing
	setUp      = "set-up"
)

// allSections is every section: a table in docs/performance.md each.
var allSections = []string{egress, ingress, hop, exclusions, idle, setUp}

// The names of paths besides those of our modes.
const (
	direct   = "direct" // KubeVirt's masquerade, no mesh
	istioK   = "Istio -k"
	control  = "Istio -k again" // shows what two labs of the same differ by
	haproxy2 = "haproxy"        // of Debian, with two threads
	ioCopy   = "io.Copy"        // two goroutines a connection
)

// Numbers of exclusions between which the time to connect is compared.
const (
	few, many = 10, 20_000
	manyMark  = ", many"
)

// sections are the paths to measure, what to measure on them, and the one to compare with.
var sections = []struct {
	name         string
	peer         string
	measurements []measurement
	recipes      []recipe
}{
	{egress, istioK, []measurement{connect, keepAlive, connectEach, bulk(1), bulk(8)}, []recipe{
		{name: direct, mode: plan.Off, alone: true},
		{name: istioK, mode: plan.Off},
		{name: control, mode: plan.Off},
		{name: string(plan.Rules), mode: plan.Rules},
		{name: string(plan.NATProxy), mode: plan.NATProxy},
		{name: string(plan.TProxy), mode: plan.TProxy},
		{name: haproxy2, mode: plan.NATProxy, relay: haproxy},
		{name: ioCopy, mode: plan.NATProxy, relay: plainRelay},
	}},
	{ingress, istioK, []measurement{connect, keepAlive, connectEach}, []recipe{
		{name: istioK, mode: plan.Off, inbound: true},
		{name: string(plan.Rules), mode: plan.Rules, inbound: true},
		{name: string(plan.NATProxy), mode: plan.NATProxy, inbound: true},
	}},
	{hop, haproxy2, []measurement{connect, keepAlive, connectEach, bulk(1), bulk(8)}, relays},
	{exclusions, "", []measurement{connect}, []recipe{
		{name: string(plan.Rules), mode: plan.Rules, excluded: few},
		{name: string(plan.Rules) + manyMark, mode: plan.Rules, excluded: many},
		{name: istioK, mode: plan.Off, ofPod: true, excluded: few},
		{name: istioK + manyMark, mode: plan.Off, ofPod: true, excluded: many},
	}},
}

// relays are the recipes of hop and idle.
var relays = []recipe{
	{name: haproxy2, mode: plan.NATProxy, alone: true, relay: haproxy},
	{name: string(plan.NATProxy), mode: plan.NATProxy, alone: true},
	{name: ioCopy, mode: plan.NATProxy, alone: true, relay: plainRelay},
}

// run is the suite.
func (d *dataPath) run() (results []Result, err error) {
	if d.rounds < 1 || d.rounds%2 == 0 {
		return nil, fmt.Errorf("-rounds is %d, want an odd number", d.rounds)
	}
	for _, s := range strings.Split(d.only, ",") {
		if s != "" && !slices.Contains(allSections, s) {
			return nil, fmt.Errorf("-sections has %q, want of %q", s, allSections)
		}
	}
	if err := netns.Check(); err != nil {
		return nil, err
	}
	for _, program := range []string{"haproxy", "wrk", "nft", "iptables-nft-restore", "iptables-legacy-restore"} {
		if _, err := exec.LookPath(program); err != nil {
			return nil, fmt.Errorf("%w: run tools/setup.sh apt bench", err)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Minute)
	defer cancel()
	if d.wants(setUp) {
		if results, err = d.setUp(ctx); err != nil {
			return nil, err
		}
	}
	image, err := dataPlane(ctx)
	if err != nil {
		return nil, err
	}
	if d.wants(idle) {
		r, err := d.holdIdle(ctx, image)
		if err != nil {
			return nil, err
		}
		results = append(results, r...)
	}
	d.log("building labs")
	paths := map[string][]*path{}
	for _, s := range sections {
		if !d.wants(s.name) {
			continue
		}
		built, err := build(ctx, s.recipes, image)
		defer closeAll(built)
		if err != nil {
			return nil, err
		}
		paths[s.name] = built
	}
	got := samples{}
	for round := range d.rounds {
		d.log("round %d of %d", round+1, d.rounds)
		for _, s := range sections {
			for _, m := range s.measurements {
				if err := got.add(ctx, m, s.name, paths[s.name], d.slice); err != nil {
					return nil, err
				}
			}
			slices.Reverse(paths[s.name])
		}
	}
	return append(got.results(), results...), nil
}

// build makes paths, a few at a time. Those that were made are given after an error too.
func build(ctx context.Context, recipes []recipe, image container.Image) ([]*path, error) {
	paths := make([]*path, len(recipes))
	var g errgroup.Group
	g.SetLimit(4)
	for i, r := range recipes {
		g.Go(func() (err error) {
			paths[i], err = newPath(ctx, r, image)
			return err
		})
	}
	err := g.Wait()
	return slices.DeleteFunc(paths, func(p *path) bool { return p == nil }), err
}

func closeAll(paths []*path) {
	for _, p := range paths {
		p.close()
	}
}

// dataPlane is MeshVirt's image.
func dataPlane(ctx context.Context) (container.Image, error) {
	image := container.Image{Files: map[string]*os.File{}}
	for file, pkg := range map[string]string{templates.RulesProgram: "cmd/rules", templates.ProxyProgram: "cmd/proxy"} {
		program, err := netlab.Build(ctx, pkg)
		if err != nil {
			return image, err
		}
		image.Files[file] = program
	}
	return image, nil
}

// goals of the data path by the results' names.
var goals = map[string]string{
	"egress, rules: connect p50":                                    "<= 1.00",
	"egress, rules: requests/s":                                     ">= 1.00",
	"egress, rules: connections/s":                                  ">= 1.00",
	"set-up, 1000 CIDRs: meshvirt-rules to iptables-nft-restore":    "<= 0.10",
	"set-up, 1000 CIDRs: meshvirt-rules to iptables-legacy-restore": "<= 0.10",
	"exclusions, 20000 to 10: connect p50":                          "ours <= 1.00",
	"hop, nat-proxy: connect p50":                                   "<= 1.00",
	"hop, nat-proxy: requests/s":                                    ">= 1.00",
	"hop, nat-proxy: connections/s":                                 ">= 1.00",
	"hop, nat-proxy: CPU per GB, 1":                                 "<= 0.50",
	"hop, nat-proxy: CPU per GB, 8":                                 "<= 0.50",
	"idle, nat-proxy: bytes per connection":                         "ours <= 1000",
	"idle, nat-proxy: descriptors per connection":                   "ours <= 2.00",
}

// A sample is what was measured on one path.
type sample struct{ section, path, metric string }

// samples have a value per round.
type samples map[sample][]float64

// add measures all paths of a section, each for a slice.
func (s samples) add(ctx context.Context, m measurement, section string, paths []*path, slice time.Duration) error {
	for _, p := range paths {
		values, err := m(ctx, p, slice)
		if err != nil {
			return fmt.Errorf("%s: path %s: %w", section, p.name, err)
		}
		for metric, v := range values {
			key := sample{section, p.name, metric}
			s[key] = append(s[key], v)
		}
	}
	return nil
}

// results compares every path with its section's peer, by everything measured on both.
func (s samples) results() (results []Result) {
	for _, x := range sections {
		for _, r := range x.recipes {
			for _, m := range metrics {
				ours, peer := s[sample{x.name, r.name, m.name}], s[sample{x.name, x.peer, m.name}]
				if r.name != x.peer && len(ours) > 0 && len(peer) > 0 {
					results = append(results, against(x.name, r.name, m, x.peer, ours, peer))
				}
			}
		}
	}
	if ours, peer := s.added(string(plan.Rules)), s.added(istioK); len(ours) > 0 {
		results = append(results, against(exclusions, fmt.Sprintf("%d to %d", many, few), metric{connectP50, "times"}, istioK, ours, peer))
	}
	return results
}

// added is how many times as long connecting takes with many exclusions as with few.
func (s samples) added(path string) []float64 {
	ratios := slices.Clone(s[sample{exclusions, path + manyMark, connectP50}])
	for i, v := range s[sample{exclusions, path, connectP50}] {
		ratios[i] /= v
	}
	return ratios
}

// against is compare for the data path's names: section, row and column of a table in docs/performance.md.
func against(section, row string, m metric, peerName string, ours, peer []float64) Result {
	r := compare(section+", "+row+": "+m.name, m.unit, peerName, ours, peer)
	r.Goal = goals[r.Name]
	return r
}

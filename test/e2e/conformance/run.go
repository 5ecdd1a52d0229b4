package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/templates"
	"github.com/meshvirt/meshvirt/test/e2e/netlab"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/agent"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/container"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/sidecar"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/vm"
)

// Bounds of one attempt. An answer that is not wanted is waited for only shortly; where it is not known
// what will come, in between.
const (
	patience  = 4 * time.Second
	curiosity = 1500 * time.Millisecond
	enough    = 500 * time.Millisecond
	labBound  = 10 * time.Minute
	bulkBound = 4 * time.Minute // of a gigabyte each way, or of less to an emulated machine
)

// Kinds of guests.
const (
	machineGuest   = "machine"
	namespaceGuest = "namespace"
	processGuest   = "process"
)

// A Row is a cell's result, as it stands in conformance.json.
type Row struct {
	Binding  string `json:"binding"`
	Mesh     string `json:"mesh"`
	Version  string `json:"mesh_version"`
	Backend  string `json:"backend"`
	KubeVirt string `json:"kubevirt"`
	Mode     string `json:"mode"`
	Family   string `json:"family"`
	Flow     string `json:"flow"`
	Want     string `json:"want"`
	Got      string `json:"got"`
	OK       bool   `json:"ok"`

	// Case is what the mesh was told: the recorded run of istio-init, and what the user added.
	Case string `json:"case"`
	// Why is the reason for Want, empty if that is through the mesh.
	Why string `json:"why,omitempty"`
	// Alone is what became of the same flow without MeshVirt.
	Alone string `json:"istio_alone,omitempty"`
	// Guest is the kind of guest: a machine, a namespace, or a process of the pod.
	Guest string `json:"guest"`
	// Path is what the lab saw of a flow that did not go as wanted.
	Path string `json:"path,omitempty"`
}

// runner runs pods of the matrix.
type runner struct {
	corpus   corpus
	image    container.Image
	machines int  // how many machines serve as guests
	parallel int  // how many other pods run at a time
	without  bool // leave MeshVirt's containers out, to see the cells fail
	done     func(lab, int, time.Duration, []Row)
}

// A lab is one pod to run.
type lab struct {
	setup
	mode  plan.Mode
	guest string
}

// newRunner builds MeshVirt's data plane.
func newRunner(ctx context.Context, c corpus) (*runner, error) {
	r := &runner{corpus: c, image: container.Image{Files: map[string]*os.File{}}, parallel: 4, done: func(lab, int, time.Duration, []Row) {}}
	for path, pkg := range map[string]string{templates.RulesProgram: "cmd/rules", templates.ProxyProgram: "cmd/proxy"} {
		program, err := netlab.Build(ctx, pkg)
		if err != nil {
			return nil, err
		}
		r.image.Files[path] = program
	}
	return r, nil
}

// run runs every pod without MeshVirt and in each of its modes, and gives the rows in the order of the setups.
func (r *runner) run(ctx context.Context, setups []setup) ([]Row, error) {
	var labs []lab
	for _, s := range setups {
		for _, mode := range append([]plan.Mode{alone}, s.modes()...) {
			l := lab{s, mode, namespaceGuest}
			switch {
			case s.guestIsProcess():
				l.guest = processGuest
			case s.whole && r.machines > 0 && mode != alone:
				l.guest = machineGuest
			}
			labs = append(labs, l)
		}
	}
	results := make([][]Row, len(labs))
	var (
		mu       sync.Mutex
		finished int
		failed   []error
		wait     sync.WaitGroup
	)
	worker := func(mine func(lab) bool, next *int, machine *vm.VM) {
		for {
			mu.Lock()
			for *next < len(labs) && !mine(labs[*next]) {
				*next++
			}
			i := *next
			*next++
			mu.Unlock()
			if i >= len(labs) || ctx.Err() != nil {
				return
			}
			start := time.Now()
			rows := r.pod(ctx, labs[i], machine)
			if ctx.Err() != nil {
				return
			}
			mu.Lock()
			results[i] = rows
			finished++
			r.done(labs[i], finished, time.Since(start), rows)
			mu.Unlock()
		}
	}
	var nextOfMachines, nextOfOthers int
	for range r.machines {
		wait.Go(func() {
			machine, err := bootMachine(ctx)
			if err != nil {
				mu.Lock()
				failed = append(failed, err)
				mu.Unlock()
				return
			}
			defer machine.Close()
			worker(func(l lab) bool { return l.guest == machineGuest }, &nextOfMachines, machine)
		})
	}
	for range r.parallel {
		wait.Go(func() { worker(func(l lab) bool { return l.guest != machineGuest }, &nextOfOthers, nil) })
	}
	wait.Wait()
	if err := errors.Join(append(failed, ctx.Err())...); err != nil {
		return nil, err
	}
	return join(labs, results), nil
}

func bootMachine(ctx context.Context) (*vm.VM, error) {
	program, err := netlab.Build(ctx, "test/e2e/netlab/labnode")
	if err != nil {
		return nil, err
	}
	return vm.Start(ctx, program)
}

// join puts beside each row what Istio alone gives, which comes first of a setup's labs.
func join(labs []lab, results [][]Row) []Row {
	var all []Row
	without := map[string]string{}
	for i, rows := range results {
		if labs[i].mode == alone {
			clear(without)
			for _, row := range rows {
				without[row.Family+row.Flow] = row.Got
			}
			continue
		}
		for _, row := range rows {
			row.Alone = without[row.Family+row.Flow]
			if row.Want == same {
				row.Want = row.Alone
				row.OK = row.Got == row.Want
			}
			if row.OK {
				row.Path = ""
			}
			all = append(all, row)
		}
	}
	return all
}

// pod runs one pod and sends its flows. What goes wrong before that is in every row.
func (r *runner) pod(ctx context.Context, l lab, machine *vm.VM) []Row {
	ctx, cancel := context.WithTimeout(ctx, labBound)
	defer cancel()
	var rows []Row
	vmi := cmp.Or(l.vmi.Name, "none") // a process needs none of KubeVirt's rules
	for _, f := range l.flows() {
		c := cell{l.setup, f, l.mode}
		want, why := wantOf(c)
		rows = append(rows, Row{
			Binding: l.binding, Mesh: l.mesh, Version: l.version, Backend: l.backend, KubeVirt: vmi, Mode: string(l.mode),
			Family: f.family, Flow: f.name, Want: want, Why: why, Case: l.caseName(), Guest: l.guest,
		})
	}
	net, err := r.start(ctx, l, machine)
	if net != nil {
		defer net.Close()
	}
	for i, f := range l.flows() {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		if err != nil {
			rows[i].Got = err.Error()
			continue
		}
		r.send(ctx, net, l, f, &rows[i])
	}
	return rows
}

// send makes one attempt, and another one if the first was not as wanted and failed: on a busy machine
// that may be for want of time.
func (r *runner) send(ctx context.Context, net *netlab.Lab, l lab, f flow, row *Row) {
	switch f.Timeout = patience; {
	case row.Want == refused:
		f.Timeout = enough
	case f.Kind == agent.Bulk:
		f.Timeout = bulkBound
	case l.mode == alone || row.Want == same:
		f.Timeout = curiosity
	}
	var result netlab.Result
	for range 2 {
		result = net.Check(ctx, f.Flow)
		row.Got = gotOf(f, result, l.guest == processGuest)
		late := row.Got == refused && row.Want != refused && l.mode != alone && row.Want != same && !r.without
		if row.Got != unknown && !late {
			break
		}
	}
	if row.Got == meshed && row.Want == known || row.Got == known && row.Want == meshed {
		row.Got = meshed + ", " + strings.Join(result.Hops, " -> ")
	}
	row.OK, row.Path = row.Got == row.Want, result.String()
}

// start makes the pod's network and runs the pod in it, as it was admitted.
func (r *runner) start(ctx context.Context, l lab, machine *vm.VM) (*netlab.Lab, error) {
	if l.err != nil {
		return nil, fmt.Errorf("cannot be represented: %w", l.err)
	}
	pod, err := l.admit(l.mode)
	if err != nil {
		return nil, err
	}
	if r.without {
		pod.Spec.InitContainers = slices.DeleteFunc(slices.Clone(pod.Spec.InitContainers), func(c corev1.Container) bool { return strings.HasPrefix(c.Name, "meshvirt-") })
	}
	o := netlab.Options{DualStack: l.dual, Pod: pod, Image: r.image, Timeout: bulkBound}
	if l.guest == machineGuest {
		o.VM = machine
	}
	net, err := netlab.New(ctx, o)
	if err != nil {
		return nil, err
	}
	if err := r.build(ctx, net, l, pod); err != nil {
		return net, err
	}
	return net, l.serve(ctx, net)
}

func (r *runner) build(ctx context.Context, net *netlab.Lab, l lab, pod *corev1.Pod) error {
	if l.mesh == ambientMesh && !l.later {
		if err := r.enrol(ctx, net, l); err != nil {
			return err
		}
	}
	var proxy *sidecar.Config
	if _, err := net.RunContainers(ctx, pod, func(c corev1.Container) (sidecar.Config, error) {
		cfg, err := r.istioInit(ctx, net, l, c)
		proxy = &cfg
		return cfg, err
	}); err != nil {
		return err
	}
	if proxy != nil && !slices.ContainsFunc(pod.Spec.InitContainers, func(c corev1.Container) bool { return c.Name == "istio-proxy" }) {
		if err := net.StartSidecar(ctx, *proxy); err != nil {
			return err
		}
	}
	if l.guestIsProcess() {
		return net.Namespace().Sysctl("ipv4/ip_unprivileged_port_start", "0") // KubeVirt's, for passt
	}
	rules, err := r.corpus.kubevirtRules(l.vmi)
	if err != nil {
		return err
	}
	if err := errors.Join(net.KubeVirtRules(ctx, rules)); err != nil {
		return fmt.Errorf("KubeVirt's rules: %w", err)
	}
	if err := net.StartGuest(ctx); err != nil {
		return err
	}
	if l.mesh == ambientMesh && l.later {
		return r.enrol(ctx, net, l)
	}
	return nil
}

// istioInit writes what istio-init was recorded to write: as it was or, after MeshVirt has changed its
// arguments, as it would be with those.
func (r *runner) istioInit(ctx context.Context, net *netlab.Lab, l lab, c corev1.Container) (sidecar.Config, error) {
	env := map[string]string{}
	for _, e := range c.Env {
		env[e.Name] = e.Value
	}
	rules, told, err := r.corpus.istio.Recorded(l.istio)
	if err == nil && l.mode != alone {
		rules, err = r.corpus.istio.Adapted(l.istio, slices.Concat(c.Command, c.Args), env)
	}
	if err != nil {
		return sidecar.Config{}, err
	}
	backend := netlab.Backend(l.backend)
	if l.backend == nativeNFT {
		backend = ""
	}
	return sidecar.Config{IPv6: told.DualStack, DNS: told.DNS, UID: told.UID, OutboundPort: told.OutboundPort, InboundPort: told.InboundPort},
		net.IstioRules(ctx, backend, istioRules(l.istio, rules))
}

// enrol has the pod join an ambient mesh. MeshVirt has taken the annotation for the interface away.
func (r *runner) enrol(ctx context.Context, net *netlab.Lab, l lab) error {
	rules, err := r.corpus.ambient.Rules(l.ambient, l.mode != plan.Ambient)
	if err != nil {
		return err
	}
	backend := netlab.Backend(l.backend)
	if l.backend == nativeNFT {
		backend = ""
	}
	if err := net.AmbientRules(ctx, backend, rules); err != nil {
		return err
	}
	return net.StartZtunnel(ctx, sidecar.Config{IPv6: l.dual, DNS: rules.DNS})
}

// serve opens what the flows go to.
func (l lab) serve(ctx context.Context, net *netlab.Lab) error {
	tcp, udp := map[netlab.Host][]uint16{}, []uint16{}
	known := map[netip.Addr]bool{netlab.PeerIP4: true, netlab.PeerIP6: true, netlab.ServiceIP4: true, netlab.ServiceIP6: true, netlab.DNSIP4: true, netlab.DNSIP6: true, netlab.ExcludedIP4: true}
	for _, f := range l.flows() {
		to := f.To.Addr()
		switch {
		case strings.HasPrefix(f.name, "migration-port"):
			if err := netlab.Open(ctx, net.Pod, []uint16{f.To.Port()}, nil); err != nil {
				return err
			}
		case f.Network == "tcp" && strings.HasPrefix(f.name, "egress-"):
			if !known[to] {
				if err := net.ServeAt(to); err != nil {
					return err
				}
				known[to] = true
			}
			tcp[netlab.Peer] = append(tcp[netlab.Peer], f.To.Port())
		case f.Network == "tcp" && (strings.HasPrefix(f.name, "ingress-") || f.name == "pod-to-guest"):
			if f.Kind != agent.Banner {
				tcp[netlab.Guest] = append(tcp[netlab.Guest], f.To.Port())
			}
		case strings.HasPrefix(f.name, "udp-in"):
			udp = append(udp, f.To.Port())
		}
	}
	// The lab has opened some of these itself.
	atPeer := slices.DeleteFunc(tcp[netlab.Peer], func(p uint16) bool { return p == netlab.SSHPort })
	if err := netlab.Open(ctx, net.Peer, atPeer, nil); err != nil {
		return err
	}
	if !l.guestIsProcess() {
		addrs := []netip.Addr{netlab.GuestIP4}
		if l.dual {
			addrs = append(addrs, netlab.GuestIP6)
		}
		return netlab.Open(ctx, net.Guest, tcp[netlab.Guest], udp, addrs...)
	}
	if err := net.Pod.Listen(ctx, agent.Listen{Network: "tcp", Addr: netip.AddrPortFrom(netip.IPv6Unspecified(), netlab.SSHPort), Kind: agent.Banner}); err != nil {
		return err
	}
	return netlab.Open(ctx, net.Pod, tcp[netlab.Guest], udp, net.PodIPs()...)
}

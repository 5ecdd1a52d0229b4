package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/templates"
	"github.com/meshvirt/meshvirt/test/e2e/netlab"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/agent"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/container"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/vm"
)

// Bounds of one attempt. An answer that is not wanted is waited for only shortly; where it is not known
// what will come, in between.
const (
	patience  = 4 * time.Second
	curiosity = 1500 * time.Millisecond
	enough    = 500 * time.Millisecond
	labBound  = 10 * time.Minute
	lateness  = 30 * time.Second // of an emulated machine's clock, where a flow may also be lost
	bulkBound = 4 * time.Minute  // of a gigabyte each way, or of less to an emulated machine, whose clock may be wrong too
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

// run runs every pod without MeshVirt and in each of its modes, and gives the rows in the order of the setups;
// with an error, those that there are.
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
	rows := join(labs, results)
	// A machine that did not boot is no loss if another one did its work.
	if finished < len(labs) {
		return rows, errors.Join(append(failed, ctx.Err(), fmt.Errorf("%d of %d pods were not run", len(labs)-finished, len(labs)))...)
	}
	return rows, nil
}

// boots is how often a machine may fail to boot, which an emulated one sometimes does on a busy host.
const boots = 3

func bootMachine(ctx context.Context) (*vm.VM, error) {
	program, err := netlab.Build(ctx, "test/e2e/netlab/labnode")
	if err != nil {
		return nil, err
	}
	var machine *vm.VM
	for range boots {
		if machine, err = vm.Start(ctx, program); err == nil {
			return machine, nil
		}
	}
	return nil, err
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
	case f.Idle > 0 && (l.mode == alone || row.Want == same): // two labs that are compared
		f.Timeout = lateness
	case l.mode == alone:
		f.Timeout = curiosity
	case f.Idle > 0:
		f.Timeout = bulkBound
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

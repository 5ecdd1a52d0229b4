package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meshvirt/meshvirt/test/e2e/netlab/container"
)

// What an idle connection costs a relay.
var (
	held      = metric{"held", "connections"}
	heldBytes = metric{"bytes per connection", "bytes"} // resident
	heldFiles = metric{"descriptors per connection", "fds"}
)

// holdIdle measures what idle connections cost. The relays are of labs of their own, which are gone
// afterwards: memory that a load has left behind would hide it, and what io.Copy holds for long is in others' way.
func (d *dataPath) holdIdle(ctx context.Context, image container.Image) (results []Result, err error) {
	limit, err := maxConnections()
	if err != nil {
		return nil, err
	}
	d.log("holding idle connections")
	paths, err := build(ctx, relays, image)
	defer closeAll(paths)
	if err != nil {
		return nil, err
	}
	costs := map[string]map[metric]float64{}
	for _, p := range paths {
		n := min(d.idle, limit)
		if p.name == ioCopy {
			n = min(n, limit/4) // it takes up to six descriptors for one
		}
		if costs[p.name], err = p.holdIdle(ctx, n); err != nil {
			return nil, fmt.Errorf("path %s: %w", p.name, err)
		}
	}
	for _, p := range paths {
		for _, m := range []metric{held, heldBytes, heldFiles} {
			if p.name != haproxy2 {
				results = append(results, against(idle, p.name, m, haproxy2, []float64{costs[p.name][m]}, []float64{costs[haproxy2][m]}))
			}
		}
	}
	return results, nil
}

// holdIdle holds n connections through the path's relay.
func (p *path) holdIdle(ctx context.Context, n int) (map[metric]float64, error) {
	before, err := usageOf(p.relayPID)
	if err != nil {
		return nil, err
	}
	done, err := p.hold(ctx, n)
	if err != nil {
		return nil, err
	}
	defer done()
	after, err := usageOf(p.relayPID)
	if err != nil {
		return nil, err
	}
	if after.files-before.files < 2*n {
		return nil, fmt.Errorf("%d descriptors before and %d with %d connections: want two more for each", before.files, after.files, n)
	}
	return map[metric]float64{
		held:      float64(n),
		heldBytes: float64(after.bytes-before.bytes) / float64(n),
		heldFiles: float64(after.files-before.files) / float64(n),
	}, nil
}

// maxConnections is for how many connections at a time a relay, and a client, has descriptors.
func maxConnections() (int, error) {
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		return 0, err
	}
	const spare = 1000 // listeners, epoll, the Go runtime's; reserves of the relays
	n := (int(min(files.Max, 1<<20)) - spare) / 2
	if n < 1 {
		return 0, fmt.Errorf("RLIMIT_NOFILE is %d, want more than %d", files.Max, spare)
	}
	return n, nil
}

// usage is what a process holds now.
type usage struct {
	cpu   time.Duration // of all its threads since their start
	bytes int64         // resident
	files int
}

func usageOf(pid int) (u usage, err error) {
	dir := fmt.Sprintf("/proc/%d/", pid)
	files, err := os.ReadDir(dir + "fd")
	if err != nil {
		return u, err
	}
	u.files = len(files)
	rollup, err := os.ReadFile(dir + "smaps_rollup") // exact, unlike VmRSS
	if err != nil {
		return u, err
	}
	for line := range strings.Lines(string(rollup)) {
		if kB, ok := strings.CutPrefix(line, "Rss:"); ok {
			_, err = fmt.Sscan(kB, &u.bytes)
			u.bytes *= 1024
		}
	}
	if err != nil {
		return u, err
	}
	u.cpu, err = cpuOf(pid)
	return u, err
}

// cpuOf is the time on a CPU, user and system, from the scheduler's own count: the ticks in stat are too
// coarse for a slice.
func cpuOf(pid int) (total time.Duration, err error) {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil {
		return 0, err
	}
	for _, file := range threads {
		b, err := os.ReadFile(file)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue // a thread that has ended
		}
		var ns int64
		if err == nil {
			_, err = fmt.Sscan(string(b), &ns)
		}
		if err != nil {
			return 0, err
		}
		total += time.Duration(ns)
	}
	if total == 0 {
		return 0, fmt.Errorf("process %d has used no CPU: want one that runs, and a kernel with CONFIG_SCHED_INFO", pid)
	}
	return total, nil
}

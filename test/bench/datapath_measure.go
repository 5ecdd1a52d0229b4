package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A metric is something measured.
type metric struct{ name, unit string }

// Names of metrics. CPU is that of the path's relay, if it has one.
const (
	connectP50 = "connect p50" // and one byte there and back
	connectP99 = "connect p99"
	keepRate   = "requests/s"
	eachRate   = "connections/s" // a request each
	keepCPU    = "CPU per request"
	eachCPU    = "CPU per connection"
)

func bulkRate(streams int) string { return fmt.Sprintf("bulk, %d", streams) }
func bulkCPU(streams int) string  { return fmt.Sprintf("CPU per GB, %d", streams) }

// metrics in the order of tables.
var metrics = []metric{
	{connectP50, "us"}, {connectP99, "us"}, {keepRate, "1/s"}, {eachRate, "1/s"}, {bulkRate(1), "Gbit/s"}, {bulkRate(8), "Gbit/s"},
	{keepCPU, "us"}, {eachCPU, "us"}, {bulkCPU(1), "s/GB"}, {bulkCPU(8), "s/GB"},
}

// A measurement gives values by the names of their metrics.
type measurement func(context.Context, *path, time.Duration) (map[string]float64, error)

// connect opens connections one after the other.
func connect(ctx context.Context, p *path, slice time.Duration) (map[string]float64, error) {
	var r struct{ P50, P99 float64 }
	err := p.measured(&r, p.loadCommand(ctx, "connect", "-to", p.target(echoPort), "-for", slice.String()))
	return map[string]float64{connectP50: r.P50, connectP99: r.P99}, err
}

// keepAlive sends requests on 16 connections that stay.
func keepAlive(ctx context.Context, p *path, slice time.Duration) (map[string]float64, error) {
	return p.requests(ctx, keepPort, slice, keepRate, keepCPU)
}

// connectEach sends requests on 16 connections, which are new ones for every request.
func connectEach(ctx context.Context, p *path, slice time.Duration) (map[string]float64, error) {
	return p.requests(ctx, closePort, slice, eachRate, eachCPU)
}

func (p *path) requests(ctx context.Context, port uint16, slice time.Duration, rate, cpu string) (map[string]float64, error) {
	var n int
	var perSecond float64
	used, err := p.relayCPU(func() (err error) {
		n, perSecond, err = p.wrk(ctx, port, slice)
		return err
	})
	values := map[string]float64{rate: perSecond}
	if p.relayPID != 0 {
		values[cpu] = used.Seconds() * 1e6 / float64(n)
	}
	return values, err
}

// bulk sends as much as goes on a number of connections.
func bulk(streams int) measurement {
	return func(ctx context.Context, p *path, slice time.Duration) (map[string]float64, error) {
		var r struct{ Bytes, Seconds float64 }
		used, err := p.relayCPU(func() error {
			return p.measured(&r, p.loadCommand(ctx, "bulk", "-to", p.target(bulkPort), "-n", strconv.Itoa(streams), "-for", slice.String()))
		})
		values := map[string]float64{bulkRate(streams): r.Bytes * 8 / 1e9 / r.Seconds}
		if p.relayPID != 0 {
			values[bulkCPU(streams)] = used.Seconds() / (r.Bytes / 1e9)
		}
		return values, err
	}
}

// relayCPU is what the path's relay uses during f, nothing if it has none.
func (p *path) relayCPU(f func() error) (time.Duration, error) {
	if p.relayPID == 0 {
		return 0, f()
	}
	before, err := cpuOf(p.relayPID)
	if err != nil {
		return 0, err
	}
	if err := f(); err != nil {
		return 0, err
	}
	after, err := cpuOf(p.relayPID)
	return after - before, err
}

// wrkSlice is the shortest after which wrk can be expected to have had answers.
const wrkSlice = 200 * time.Millisecond

// wrk gives the number of requests of 16 connections, and their rate per second. The program counts whole
// seconds only, so it is interrupted, and then says for how long it ran.
func (p *path) wrk(ctx context.Context, port uint16, slice time.Duration) (n int, rate float64, err error) {
	cmd := exec.CommandContext(ctx, "wrk", "-t1", "-c16", "-d60s", "--timeout", "20s", "http://"+p.target(port)+"/")
	out, err := p.runWhile(cmd, func() error {
		if err := awaitHandler(cmd.Process.Pid, syscall.SIGINT); err != nil {
			return err
		}
		time.Sleep(max(slice, wrkSlice))
		return cmd.Process.Signal(syscall.SIGINT)
	})
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(out)) {
		if count, _, found := strings.Cut(line, " requests in "); found {
			n, err = strconv.Atoi(strings.TrimSpace(count))
		}
		switch name, value, _ := strings.Cut(line, ":"); strings.TrimSpace(name) {
		case "Requests/sec":
			rate, err = strconv.ParseFloat(strings.TrimSpace(value), 64)
		case "Socket errors", "Non-2xx or 3xx responses":
			err = errors.New(line)
		}
		if err != nil {
			return 0, 0, fmt.Errorf("wrk: %w", err)
		}
	}
	if n <= 0 || rate <= 0 {
		return 0, 0, fmt.Errorf("wrk got no answer\n%s", out)
	}
	return n, rate, nil
}

// awaitHandler waits until a process handles a signal, which would end it before.
func awaitHandler(pid int, s syscall.Signal) error {
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(time.Millisecond) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(b)) {
			var caught uint64
			if mask, ok := strings.CutPrefix(line, "SigCgt:"); !ok {
				continue
			} else if _, err := fmt.Sscanf(strings.TrimSpace(mask), "%x", &caught); err != nil {
				return err
			}
			if caught&(1<<(s-1)) != 0 {
				return nil
			}
			if strings.Contains(string(b), "\nState:\tZ") {
				return errors.New("it has ended")
			}
		}
	}
	return fmt.Errorf("no handler for %s", s)
}

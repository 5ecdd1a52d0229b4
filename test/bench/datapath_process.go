package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/meshvirt/meshvirt/test/e2e/netlab"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/netns"
)

// loadCommand runs test/bench/load, which has no name in the file system.
func (p *path) loadCommand(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "/proc/self/fd/3", args...)
	cmd.ExtraFiles = []*os.File{p.load}
	return cmd
}

// target is a port of the path's server as its client dials it.
func (p *path) target(port uint16) string { return netip.AddrPortFrom(p.to, port).String() }

// start starts a program that runs until close, and waits for a line of its output unless that is empty.
func (p *path) start(h netlab.Host, cmd *exec.Cmd, line string) error {
	end, err := p.startUntil(h, cmd, line)
	if err == nil {
		p.closers = append(p.closers, end)
	}
	return err
}

// startUntil starts a program and gives what ends it.
func (p *path) startUntil(h netlab.Host, cmd *exec.Cmd, line string) (end func(), err error) {
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	var failed strings.Builder
	cmd.Stderr = &failed
	if err := p.lab.NamespaceOf(h).Start(cmd); err != nil {
		return nil, err
	}
	end = func() {
		in.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	if line == "" {
		return end, nil
	}
	if got, err := bufio.NewReader(out).ReadString('\n'); err != nil || strings.TrimSpace(got) != line {
		end()
		return nil, fmt.Errorf("%s says %q, want %q: %w\n%s", strings.Join(cmd.Args[1:], " "), got, line, err, &failed)
	}
	return end, nil
}

// hold opens n connections along the path, which stay until done.
func (p *path) hold(ctx context.Context, n int) (done func(), err error) {
	return p.startUntil(p.client, p.loadCommand(ctx, "hold", "-to", p.target(echoPort), "-n", strconv.Itoa(n)), "ready")
}

// measured runs load's client and reads what it measured into result.
func (p *path) measured(result any, cmd *exec.Cmd) error {
	out, err := p.run(cmd)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(out, result); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// patience bounds a client, so that a path that swallows bytes is an error.
const patience = 2 * time.Minute

// run runs a program as the path's client.
func (p *path) run(cmd *exec.Cmd) ([]byte, error) {
	return p.runWhile(cmd, func() error { return nil })
}

// runWhile runs a program as the path's client, and does something meanwhile.
func (p *path) runWhile(cmd *exec.Cmd, do func() error) ([]byte, error) {
	var out, failed strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &failed
	if err := p.lab.NamespaceOf(p.client).Start(cmd); err != nil {
		return nil, err
	}
	limit := time.AfterFunc(patience, func() { _ = cmd.Process.Kill() })
	defer limit.Stop()
	done := do()
	if done != nil {
		_ = cmd.Process.Kill()
	}
	if err := errors.Join(done, cmd.Wait()); err != nil {
		return nil, fmt.Errorf("%s: %w\n%s%s", strings.Join(cmd.Args, " "), err, &out, &failed)
	}
	return []byte(out.String()), nil
}

// taken counts the connections of a namespace that a process there has, by their local port.
func taken(ns *netns.Namespace) (map[uint16]int, error) {
	ports := map[uint16]int{}
	err := ns.Do(func() error {
		for _, file := range []string{"tcp", "tcp6"} {
			f, err := os.Open("/proc/thread-self/net/" + file)
			if err != nil {
				return err
			}
			defer f.Close()
			// local_address is an address and a port, st the state, of which 0A is LISTEN (net/tcp_states.h), inode is 0
			// if no process has the socket (proc_pid_net(5)).
			const local, state, inode, columns = 1, 3, 9, 10
			r := bufio.NewScanner(f)
			for r.Scan() {
				fields := strings.Fields(r.Text())
				if len(fields) < columns || fields[0] == "sl" || fields[state] == "0A" || fields[inode] == "0" {
					continue
				}
				_, hex, _ := strings.Cut(fields[local], ":")
				port, err := strconv.ParseUint(hex, 16, 16)
				if err != nil {
					return err
				}
				ports[uint16(port)]++
			}
			if err := r.Err(); err != nil {
				return err
			}
		}
		return nil
	})
	return ports, err
}

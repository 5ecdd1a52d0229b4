package container

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Process is a running container.
type Process struct {
	cmd  *exec.Cmd
	out  output
	done chan struct{}
	err  error // valid after done is closed
}

// Start starts a container. Starter is a program that calls Exec when it is run with the argument
// "container"; start starts a command in the network namespace that the container is to be in.
func Start(s Spec, image Image, starter *os.File, start func(*exec.Cmd) error) (*Process, error) {
	spec, err := specAsFile(s)
	if err != nil {
		return nil, err
	}
	defer spec.Close()
	p := &Process{done: make(chan struct{})}
	// The starter may have no name any more; the child has it as a file descriptor.
	files := []*os.File{spec}
	for _, path := range s.Files {
		files = append(files, image.Files[path])
	}
	files = append(files, starter)
	p.cmd = &exec.Cmd{
		Path:        fmt.Sprintf("/proc/self/fd/%d", specFile+len(files)-1),
		Args:        []string{"labnode", "container"},
		ExtraFiles:  files,
		Stdout:      &p.out,
		Stderr:      &p.out,
		SysProcAttr: &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID},
	}
	if s.HostRoot {
		// Programs of the machine look at /proc, which is of the machine's processes.
		p.cmd.SysProcAttr.Cloneflags = unix.CLONE_NEWNS
	}
	if err := start(p.cmd); err != nil {
		return nil, fmt.Errorf("start container: %w", err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// specAsFile puts s where the container finds it: in a file in memory, read from its start.
func specAsFile(s Spec) (*os.File, error) {
	b, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	fd, err := unix.MemfdCreate("spec", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make a file in memory: %w", err)
	}
	f := os.NewFile(uintptr(fd), "spec")
	if _, err := f.Write(b); err != nil {
		return nil, err
	}
	if _, err := f.Seek(0, 0); err != nil {
		return nil, err
	}
	return f, nil
}

// Pid is the container's first process, as seen by the caller.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Done is closed when the container has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Output is what the container has written until now, its last 64 KiB.
func (p *Process) Output() string { return p.out.String() }

// Wait waits for the container's end. Its error has the container's output.
func (p *Process) Wait(ctx context.Context) error {
	select {
	case <-p.done:
	case <-ctx.Done():
		return fmt.Errorf("wait for the container: %w\n%s", ctx.Err(), p.Output())
	}
	if p.err != nil {
		return fmt.Errorf("container: %w\n%s", p.err, p.Output())
	}
	return nil
}

// Stop asks the container to end, and kills it if it has not after the grace period, as a kubelet
// does. The error is nil if the container ended by itself with code 0.
func (p *Process) Stop(ctx context.Context, grace time.Duration) error {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("ask the container to end: %w", err)
	}
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-p.done:
	case <-ctx.Done():
		p.Kill()
	case <-timer.C:
		p.Kill()
	}
	if p.err != nil {
		return fmt.Errorf("container: %w\n%s", p.err, p.Output())
	}
	return nil
}

// Kill ends the container and waits until it has.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// maxOutput bounds what is kept of a container's output.
const maxOutput = 64 << 10

// output keeps the last maxOutput bytes.
type output struct {
	mu sync.Mutex
	b  []byte
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.b = append(o.b, p...)
	if over := len(o.b) - maxOutput; over > 0 {
		o.b = append(o.b[:0], o.b[over:]...)
	}
	return len(p), nil
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return string(o.b)
}

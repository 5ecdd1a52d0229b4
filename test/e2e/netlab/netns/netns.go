// Package netns gives tests network namespaces of their own that vanish with the process that made
// them, however it ends: they have no name in the file system, and nothing needs to be cleaned up.
package netns

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// Namespace is a network namespace with a thread of its own in it. It lives until Close, or until
// the process ends.
type Namespace struct {
	name  string
	file  *os.File
	calls chan call
}

type call struct {
	f    func() error
	done chan error
}

// New makes an empty namespace. The name is for messages only. It needs CAP_SYS_ADMIN.
func New(name string) (*Namespace, error) {
	n, err := start(name, func() error { return unix.Unshare(unix.CLONE_NEWNET) })
	if err != nil {
		return nil, fmt.Errorf("make network namespace %s: %w", name, err)
	}
	return n, nil
}

// Join gives the namespace that a file refers to, such as /proc/<pid>/ns/net. Close leaves it to those
// who are in it as well. It needs CAP_SYS_ADMIN.
func Join(name, path string) (*Namespace, error) {
	f, err := os.Open(path)
	if err == nil {
		defer f.Close()
		var n *Namespace
		if n, err = start(name, func() error { return unix.Setns(int(f.Fd()), unix.CLONE_NEWNET) }); err == nil {
			return n, nil
		}
	}
	return nil, fmt.Errorf("join network namespace %s: %w", name, err)
}

// start starts the thread, which enters the namespace.
func start(name string, enter func() error) (*Namespace, error) {
	n := &Namespace{name: name, calls: make(chan call)}
	ready := make(chan error)
	go n.loop(enter, ready)
	return n, <-ready
}

// loop never unlocks its thread: the thread ends with the goroutine, and with it, by their
// parent-death signal, the processes that were started on it. A thread of Go's pool would not do:
// it may end at any time, and the processes too early.
func (n *Namespace) loop(enter func() error, ready chan<- error) {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		// The process's first thread does not end before the process. While it is ours, the next
		// goroutine gets another one.
		defer runtime.UnlockOSThread()
		again := make(chan error)
		go n.loop(enter, again)
		ready <- <-again
		return
	}
	err := enter()
	if err == nil {
		n.file, err = os.Open("/proc/thread-self/ns/net")
	}
	ready <- err
	if err != nil {
		return
	}
	for c := range n.calls {
		c.done <- c.f()
	}
}

// Name is the name given to New.
func (n *Namespace) Name() string { return n.name }

// File refers to the namespace, for netlink calls that want a file descriptor of one.
func (n *Namespace) File() *os.File { return n.file }

// Do calls f on the thread that is in the namespace. What f opens by file descriptor stays in the
// namespace; f must not start goroutines that are to be in it. Calls run one after the other.
func (n *Namespace) Do(f func() error) error {
	if n.calls == nil {
		return fmt.Errorf("in %s: %w", n.name, os.ErrClosed)
	}
	c := call{f, make(chan error, 1)}
	n.calls <- c
	if err := <-c.done; err != nil {
		return fmt.Errorf("in %s: %w", n.name, err)
	}
	return nil
}

// Start starts cmd in the namespace. It is killed when the namespace is closed.
func (n *Namespace) Start(cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	return n.Do(cmd.Start)
}

// Run runs cmd in the namespace and gives its output, which an error has as well.
func (n *Namespace) Run(cmd *exec.Cmd) (string, error) {
	out := &limited{max: 64 << 10}
	cmd.Stdout, cmd.Stderr = out, out
	err := n.Start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		return out.String(), fmt.Errorf("%s in %s: %w\n%s", cmd.Args[0], n.name, err, out)
	}
	return out.String(), nil
}

// Sysctl writes a value below /proc/sys/net, such as "ipv4/ip_forward".
func (n *Namespace) Sysctl(key, value string) error {
	return n.Do(func() error { return os.WriteFile("/proc/sys/net/"+key, []byte(value), 0) })
}

// Close ends the processes started in the namespace, and so the namespace. A second Close does nothing.
func (n *Namespace) Close() error {
	if n.calls == nil {
		return nil
	}
	close(n.calls)
	n.calls = nil
	return n.file.Close()
}

// limited keeps the first max bytes that are written to it.
type limited struct {
	b   []byte
	max int
}

func (l *limited) Write(p []byte) (int, error) {
	l.b = append(l.b, p[:min(len(p), l.max-len(l.b))]...)
	return len(p), nil
}

func (l *limited) String() string { return string(l.b) }

// ErrNotRoot says that the caller may not make namespaces.
var ErrNotRoot = errors.New("not root: want a user who may make network namespaces")

// Check reports ErrNotRoot if New cannot work here.
func Check() error {
	if os.Geteuid() != 0 {
		return ErrNotRoot
	}
	return nil
}

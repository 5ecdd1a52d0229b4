package netlab

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"github.com/meshvirt/meshvirt/test/e2e/netlab/netns"
)

// start starts labnode in a namespace as a user and group, and gives its input and output.
func (l *Lab) start(ns *netns.Namespace, user syscall.Credential, args ...string) (*os.File, error) {
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("socketpair: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), args[0]), os.NewFile(uintptr(pair[1]), args[0])
	defer theirs.Close()
	cmd := command(l.program, nil, append([]string{"labnode"}, args...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = theirs, theirs, os.Stderr
	if user.Uid != 0 || user.Gid != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &user}
	}
	if err := ns.Start(cmd); err != nil {
		ours.Close()
		return nil, fmt.Errorf("start %s in %s: %w", args[0], ns.Name(), err)
	}
	l.closers = append(l.closers, func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		ours.Close()
	})
	return ours, nil
}

// RunInPod runs a program of this machine in the pod's network namespace as root, with some input,
// and gives its output.
func (l *Lab) RunInPod(ctx context.Context, input string, args ...string) (string, error) {
	return runIn(ctx, l.pod, input, args...)
}

func runIn(ctx context.Context, ns *netns.Namespace, input string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Stdin = strings.NewReader(input)
	return ns.Run(cmd)
}

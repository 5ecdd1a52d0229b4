package lab

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// inside marks the process that Enter has started.
const inside = "MESHVIRT_LAB"

// Enter gives the whole test process a network namespace of its own, in which network, a shell script, has made what
// the tests want. For TestMain: it runs the test program there once more, where it returns, and ends with that.
func Enter(network string) {
	if os.Getenv(inside) == "" {
		os.Exit(again())
	}
	if out, err := exec.Command("sh", "-ec", network).CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build the network (want root, ip and nft): %v\n%s", err, out)
		os.Exit(1)
	}
}

func again() int {
	runtime.LockOSThread() // Pdeathsig is about the thread
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "run the tests in a network namespace (want root):", err)
		return 1
	}
	return 0
}

// NeedRoot skips a test that could not make namespaces, which is an error where tests must be complete.
func NeedRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("this test makes network namespaces: run it as root")
	}
	t.Skip("this test makes network namespaces: run it as root")
}

// InNamespace is OnThread in a new network namespace, which ends with its last user.
func InNamespace(f func() error) error {
	return OnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make a network namespace: %w", err)
		}
		return f()
	})
}

// OnThread runs f on a thread of its own, which is thrown away afterwards with all that f did to it.
func OnThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlock: the runtime then ends the thread
		done <- f()
	}()
	return <-done
}

package netns

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

func TestNamespace(t *testing.T) {
	if err := Check(); err != nil && os.Getenv("CI") != "true" {
		t.Skip(err)
	}
	a, err := New("a")
	if err != nil {
		t.Fatal(err)
	}
	out, err := a.Run(exec.Command("ip", "-o", "link"))
	if err != nil || strings.Count(out, "\n") != 1 || !strings.Contains(out, " lo:") {
		t.Errorf("links are %q (%v), want lo alone", out, err)
	}
	if err := a.Sysctl("ipv4/ip_forward", "1"); err != nil {
		t.Fatal(err)
	}
	b, err := New("b")
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if out, err := b.Run(exec.Command("cat", "/proc/sys/net/ipv4/ip_forward")); err != nil || out != "0\n" {
		t.Errorf("ip_forward of another namespace is %q (%v), want 0", out, err)
	}
	again, err := Join("a again", fmt.Sprintf("/proc/self/fd/%d", a.File().Fd()))
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if out, err := again.Run(exec.Command("cat", "/proc/sys/net/ipv4/ip_forward")); err != nil || out != "1\n" {
		t.Errorf("ip_forward of the namespace joined is %q (%v), want 1", out, err)
	}
	if _, err := Join("none", "/proc/self/ns/none"); err == nil || !strings.Contains(err.Error(), "join network namespace none") {
		t.Errorf("got error %v, want that there is none", err)
	}
	if _, err := b.Run(exec.Command("sh", "-c", "echo reason; exit 3")); err == nil || !strings.Contains(err.Error(), "in b: exit status 3\nreason") {
		t.Errorf("got error %v, want one with code and output", err)
	}
	sleep := exec.Command("sleep", "600")
	if err := a.Start(sleep); err != nil {
		t.Fatal(err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if err := sleep.Wait(); err == nil || sleep.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("the process ended with %v, want it killed with its namespace", err)
	}
	if err := a.Do(func() error { return nil }); err == nil || !strings.Contains(err.Error(), os.ErrClosed.Error()) {
		t.Errorf("got error %v, want the namespace closed", err)
	}
}

package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A Netns is a network namespace of a test. It has no name and goes when its last user has gone.
type Netns struct{ *os.File }

// NewNetns makes one, for a test that is root.
func NewNetns(t testing.TB) Netns {
	t.Helper()
	NeedRoot(t)
	var ns Netns
	err := InNamespace(func() (err error) {
		ns.File, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	return ns
}

// Do runs f in the namespace, as uid where that matters: for the owner of sockets.
func (ns Netns) Do(uid int, f func() error) error {
	return OnThread(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
		if _, err := unix.SetfsuidRetUid(uid); err != nil {
			return err
		}
		return f()
	})
}

// Run starts a program in the namespace and gives its output; a failure ends the test.
func (ns Netns) Run(t testing.TB, stdin string, argv ...string) string {
	t.Helper()
	var out []byte
	err := ns.Do(0, func() (err error) {
		cmd := exec.Command(argv[0], argv[1:]...)
		cmd.Stdin = strings.NewReader(stdin)
		out, err = cmd.Output()
		var failed *exec.ExitError
		if errors.As(err, &failed) {
			err = fmt.Errorf("%w: %s", err, failed.Stderr)
		}
		return err
	})
	if err != nil {
		t.Fatalf("%s: %v", strings.Join(argv, " "), err)
	}
	return string(out)
}

// Sysctl writes a value below /proc/sys/net.
func (ns Netns) Sysctl(t testing.TB, name, value string) {
	t.Helper()
	if err := ns.Do(0, func() error { return os.WriteFile("/proc/sys/net/"+name, []byte(value), 0) }); err != nil {
		t.Fatal(err)
	}
}

// Table is a table of family inet as nft lists it, in the form that NormalTable gives.
func (ns Netns) Table(t testing.TB, name string) string {
	t.Helper()
	return NormalTable(ns.Run(t, "", "nft", "list", "table", "inet", name))
}

var (
	counts = regexp.MustCompile(`counter packets \d+ bytes \d+`)
	breaks = regexp.MustCompile(`,\s*\n\s*`)
)

// NormalTable takes from nft text what does not matter: how lines are broken and indented, and how far
// counters are.
func NormalTable(text string) string {
	text = counts.ReplaceAllString(text, "counter packets 0 bytes 0")
	text = breaks.ReplaceAllString(text, ", ")
	var b strings.Builder
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" {
			b.WriteString(line + "\n")
		}
	}
	return b.String()
}

package rules

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	testlab "github.com/meshvirt/meshvirt/test/lab"
)

// A netns is a network namespace of a test. It has no name and goes when its last user has gone.
type netns struct{ *os.File }

func newNetns(t testing.TB) netns {
	t.Helper()
	testlab.NeedRoot(t)
	var ns netns
	err := testlab.InNamespace(func() (err error) {
		ns.File, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	return ns
}

// do runs f in the namespace, as uid where that matters: for the owner of sockets.
func (ns netns) do(uid int, f func() error) error {
	return testlab.OnThread(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
		if _, err := unix.SetfsuidRetUid(uid); err != nil {
			return err
		}
		return f()
	})
}

// run starts a program in the namespace and gives its output; a failure ends the test.
func (ns netns) run(t testing.TB, stdin string, argv ...string) string {
	t.Helper()
	var out []byte
	err := ns.do(0, func() (err error) {
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

// list is the table as nft sees it.
func (ns netns) list(t testing.TB) string {
	t.Helper()
	return normal(ns.run(t, "", "nft", "list", "table", "inet", Table))
}

var (
	counts = regexp.MustCompile(`counter packets \d+ bytes \d+`)
	breaks = regexp.MustCompile(`,\s*\n\s*`)
)

// normal takes from nft text what does not matter: how lines are broken and indented, and how far
// counters are.
func normal(text string) string {
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

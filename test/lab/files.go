package lab

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Descriptors counts a process's descriptors: those of the given kinds, such as "socket" and "pipe", or all.
func Descriptors(t testing.TB, pid int, kinds ...string) (n int) {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd/", pid)
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(kinds) == 0 {
		return len(list)
	}
	for _, e := range list {
		to, _ := os.Readlink(dir + e.Name()) // it may be closed by now
		if kind, _, _ := strings.Cut(to, ":["); slices.Contains(kinds, kind) {
			n++
		}
	}
	return n
}

// LimitFiles changes the soft limit of this process's descriptors until restore, or the end of the test.
func LimitFiles(t testing.TB, files uint64) (restore func()) {
	t.Helper()
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: files, Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	restore = func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(restore)
	return restore
}

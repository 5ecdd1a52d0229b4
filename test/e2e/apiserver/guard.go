package apiserver

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// guard sees to it that processes end with this one, however that ends: a panic or the time limit of
// `go test` run no Stop. (The kernel's PR_SET_PDEATHSIG is no choice: it acts at the end of the thread
// that started the process, and the Go runtime ends threads as it likes.) Release it once they ended.
func guard(pids ...int) (release func(), err error) {
	args := []string{"-c", `read -r _; kill -KILL "$@"`, "guard"}
	for _, pid := range pids {
		args = append(args, strconv.Itoa(pid))
	}
	cmd := exec.Command("sh", args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // not for a terminal's Ctrl-C
	// The end of this process closes the pipe, and so ends the shell's read.
	pipe, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start guard: %w", err)
	}
	return func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = pipe.Close()
	}, nil
}

// children gives the child processes that run one of the programs.
func children(programs ...string) ([]int, error) {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, file := range stats {
		stat, err := os.ReadFile(file)
		if err != nil {
			continue // it ended
		}
		// The second field is the name in parentheses, which may hold anything; state and parent follow.
		fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		exe, err := os.Readlink(filepath.Join(filepath.Dir(file), "exe"))
		if err != nil || fields[1] != strconv.Itoa(os.Getpid()) || !slices.Contains(programs, exe) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err != nil {
			return nil, err
		}
		pids = append(pids, pid)
	}
	return pids, nil
}

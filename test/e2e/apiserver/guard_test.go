package apiserver

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// guardedEnv tells a process of this test what it is.
const guardedEnv = "MESHVIRT_TEST_GUARD"

// What is guarded ends with the process that guards, even if that is killed.
func TestGuard(t *testing.T) {
	if os.Getenv(guardedEnv) != "" {
		guarded(t)
	}
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	process := exec.Command(program, "-test.run=^TestGuard$")
	process.Env = append(os.Environ(), guardedEnv+"=1")
	out, err := process.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := process.Start(); err != nil {
		t.Fatal(err)
	}
	pid := 0
	for lines := bufio.NewScanner(out); pid == 0 && lines.Scan(); {
		if text, ok := strings.CutPrefix(lines.Text(), "guarded "); ok {
			if pid, err = strconv.Atoi(text); err != nil {
				t.Fatal(err)
			}
		}
	}
	_ = process.Process.Kill()
	_ = process.Wait()
	if pid == 0 {
		t.Fatal("the process started nothing")
	}
	for deadline := time.Now().Add(patience); !ended(pid); time.Sleep(poll) {
		if time.Now().After(deadline) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
			t.Fatalf("process %d lives on after the one that guards it", pid)
		}
	}
}

// guarded is the process that guards another one and is killed.
func guarded(t *testing.T) {
	sleep := exec.Command("sleep", "600")
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := guard(sleep.Process.Pid); err != nil {
		t.Fatal(err)
	}
	fmt.Printf("guarded %d\n", sleep.Process.Pid)
	time.Sleep(10 * time.Minute) // until it is killed
}

// ended reports whether no process with the number runs. A zombie, left to a parent that never asks,
// has ended too.
func ended(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	return strings.HasPrefix(string(stat[strings.LastIndexByte(string(stat), ')')+1:]), " Z")
}

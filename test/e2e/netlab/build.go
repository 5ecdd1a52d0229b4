package netlab

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"

	"github.com/meshvirt/meshvirt/tools"
)

// module is where the programs of the lab and of MeshVirt are.
const module = "github.com/meshvirt/meshvirt/"

// builds keeps each program for the process's life.
var builds struct {
	sync.Mutex
	byPackage map[string]*os.File
}

// Build compiles a main package of this module, named by its path in the module, and gives the open
// program. The program has no name in the file system, so nothing is left behind: run it by its file
// descriptor, or copy it. Each is built once in a process. It needs the go command, in the module.
func Build(ctx context.Context, pkg string) (*os.File, error) {
	builds.Lock()
	defer builds.Unlock()
	if f := builds.byPackage[pkg]; f != nil {
		return f, nil
	}
	// A test that runs the program depends on its source, which go test cannot see.
	if err := tools.Uses(pkg, "pkg", "test/e2e/netlab"); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "netlab")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "program")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", path, module+pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build %s: %w\n%s", pkg, err, bytes.TrimSpace(out))
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	if builds.byPackage == nil {
		builds.byPackage = map[string]*os.File{}
	}
	builds.byPackage[pkg] = f
	return f, nil
}

// command is a program of Build as a command. Its file descriptor follows those in files, which
// are 3 and up.
func command(program *os.File, files []*os.File, args ...string) *exec.Cmd {
	return &exec.Cmd{
		Path:       fmt.Sprintf("/proc/self/fd/%d", 3+len(files)),
		Args:       args,
		ExtraFiles: append(files, program),
	}
}

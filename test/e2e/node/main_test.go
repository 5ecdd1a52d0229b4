package node

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/go-logr/logr"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/meshvirt/meshvirt/test/e2e/apiserver"
	"github.com/meshvirt/meshvirt/tools"
)

// One cluster serves the whole package. The tests run in the order of the files' lines; each of them
// also runs alone.
var (
	cluster  *Cluster
	injector *apiserver.Injector
	// missing is what keeps a node from running here.
	missing error
)

func TestMain(m *testing.M) {
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	if dir, cgroup, ok := Isolated(); ok {
		return inside(m, dir, cgroup)
	}
	if missing = Check(); missing != nil {
		fmt.Fprintln(os.Stderr, "NOT TESTED on a node:", missing)
		return m.Run(), nil
	}
	dir, err := os.MkdirTemp("", "meshvirt-node-")
	if err != nil {
		return 0, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if err := Build(context.Background(), dir); err != nil {
		return 0, err
	}
	return Isolate(dir)
}

// inside runs the tests in the process that Isolate made.
func inside(m *testing.M, dir, cgroup string) (code int, err error) {
	ctrllog.SetLogger(logr.Discard()) // or controller-runtime complains after a while that nobody did
	ctx := context.Background()
	if cluster, err = Start(ctx, dir, cgroup); err != nil {
		return 0, err
	}
	defer func() {
		if e := cluster.Stop(); err == nil {
			err = e
		}
		if code != 0 || err != nil {
			keepLogs(dir)
		}
	}()
	if injector, err = cluster.StartInjector(ctx); err != nil {
		return 0, err
	}
	return m.Run(), nil
}

// keepLogs copies the programs' logs to where a failed run can be understood by.
func keepLogs(dir string) {
	to, err := os.MkdirTemp("", "meshvirt-node-logs-")
	if err != nil {
		return
	}
	logs, _ := filepath.Glob(filepath.Join(dir, "*.log"))
	more, _ := filepath.Glob(filepath.Join(dir, "control-plane", "*.log"))
	for _, log := range append(logs, more...) {
		if b, err := os.ReadFile(log); err == nil {
			_ = os.WriteFile(filepath.Join(to, filepath.Base(log)), b, 0o644)
		}
	}
	fmt.Fprintln(os.Stderr, "logs of the cluster's programs:", to)
}

// uses makes results depend on what TestMain builds; `go test` watches from the first test on.
var uses = sync.OnceValue(func() error {
	return tools.Uses("charts/meshvirt", "cmd", "certs", "pkg", "tools", "test/corpus", "test/e2e/netlab", "test/e2e/node", "Dockerfile", "go.sum")
})

// node stops the test if there is none.
func node(t *testing.T) *Cluster {
	t.Helper()
	if err := uses(); err != nil {
		t.Fatal(err)
	}
	if missing != nil && os.Getenv("CI") == "true" {
		t.Fatal(missing)
	} else if missing != nil {
		t.Skip(missing)
	}
	return cluster
}

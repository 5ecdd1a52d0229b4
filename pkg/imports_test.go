// Package pkg_test keeps the architecture: which package may depend on which.
package pkg_test

import (
	"io/fs"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const module = "github.com/meshvirt/meshvirt/"

// arrows are the dependencies, direct or not, that must not be. docs/architecture.md draws what may.
var arrows = []struct {
	from   []string // packages below module
	to     []string // import paths and everything below them
	reason string
}{
	{
		[]string{"pkg/plan", "pkg/bridge", "pkg/nft", "pkg/rules", "pkg/keeper", "pkg/interpreter", "pkg/walk", "pkg/drawing", "pkg/resolv", "pkg/dns", "pkg/proxy", "pkg/sockopt", "cmd/rules", "cmd/proxy"},
		[]string{"k8s.io", "sigs.k8s.io"},
		"the data plane runs beside every VM: it must stay small, and needs nothing of Kubernetes",
	},
	{
		[]string{"pkg/plan", "pkg/cmdline", "pkg/mesh", "pkg/kubevirt"},
		[]string{"github.com/google", "github.com/vishvananda", "golang.org/x"},
		"both worlds import plan, and cmdline, mesh and kubevirt read text: the standard library is enough",
	},
	{
		[]string{"pkg/cmdline"},
		[]string{module + "pkg", "k8s.io"},
		"a command line is strings; what they mean for a pod is the mesh's",
	},
	{
		[]string{"pkg/kubevirt"},
		[]string{module + "pkg/annotations", module + "pkg/mesh", module + "pkg/templates", "k8s.io"},
		"what KubeVirt says is the same without a mesh, and what follows from it is decided elsewhere",
	},
	{
		[]string{"pkg/inventory"},
		[]string{module + "pkg/annotations", module + "pkg/mesh", module + "pkg/templates", module + "pkg/mutate"},
		"it reads objects as they are; what is wrong with them is the check's",
	},
	{
		[]string{"pkg/annotations", "pkg/cmdline", "pkg/kubevirt", "pkg/mesh", "pkg/decision", "pkg/templates", "pkg/redirect", "pkg/record", "pkg/mutate", "pkg/patch", "pkg/review", "pkg/inventory", "pkg/check", "pkg/admit", "cmd/webhook"},
		[]string{module + "pkg/bridge", module + "pkg/nft", module + "pkg/rules", module + "pkg/keeper", module + "pkg/resolv", module + "pkg/dns", module + "pkg/proxy", module + "pkg/sockopt", "github.com/google/nftables", "github.com/vishvananda/netlink"},
		"the webhook decides and the data plane acts; pkg/plan is all that they share",
	},
	{
		[]string{"pkg/annotations", "pkg/cmdline", "pkg/kubevirt", "pkg/mesh", "pkg/decision", "pkg/templates", "pkg/redirect", "pkg/record", "pkg/mutate", "pkg/patch", "pkg/review", "pkg/inventory", "pkg/check"},
		[]string{"k8s.io/client-go", "sigs.k8s.io/controller-runtime", module + "pkg/admit"},
		"adaptation and checks do no I/O, so that the command line and tests run them without a cluster",
	},
	{
		[]string{"pkg/annotations", "pkg/cmdline", "pkg/kubevirt", "pkg/mesh", "pkg/decision", "pkg/templates", "pkg/redirect", "pkg/record", "pkg/mutate", "pkg/patch", "pkg/review", "pkg/admit", "cmd/webhook"},
		[]string{module + "pkg/inventory", module + "pkg/check"},
		"checks look at admission from outside",
	},
	{
		[]string{"pkg/decision"},
		[]string{module + "pkg/templates", module + "pkg/redirect", "k8s.io/api"},
		"a mode is decided by what is known of a pod, not by looking into one",
	},
	{
		[]string{"pkg/templates"},
		[]string{module + "pkg/annotations", module + "pkg/decision", module + "pkg/kubevirt", module + "pkg/cmdline", module + "pkg/mesh", module + "pkg/mutate"},
		"templates build containers and make no decisions",
	},
	{
		[]string{"pkg/redirect"},
		[]string{module + "pkg/annotations", module + "pkg/decision", module + "pkg/kubevirt"},
		"it tells Istio what it is told to, whatever for",
	},
	{
		[]string{"pkg/patch"},
		[]string{module + "pkg/annotations", module + "pkg/decision", module + "pkg/kubevirt", module + "pkg/mesh", module + "pkg/redirect", module + "pkg/record", module + "pkg/mutate"},
		"a patch is of two pods, whoever made the second",
	},
	{
		[]string{"pkg/review"},
		[]string{module + "pkg/annotations", module + "pkg/decision", module + "pkg/kubevirt", module + "pkg/mesh", module + "pkg/record", module + "pkg/mutate", module + "pkg/patch"},
		"a review is read before anything is known of its pod",
	},
	{
		[]string{"pkg/record", "pkg/mutate"},
		[]string{module + "pkg/patch", "gomodules.xyz/jsonpatch", "github.com/evanphx/json-patch"},
		"a pod is changed, and given back, as a whole; how the difference is written is for who sends it",
	},
	{
		[]string{"pkg/sockopt", "pkg/dns"},
		[]string{module + "pkg/plan"},
		"socket options and datagrams know nothing of meshes",
	},
	{
		[]string{"pkg/nft"},
		[]string{module + "pkg", "github.com/vishvananda"},
		"a language knows nothing of what is said in it",
	},
	{
		[]string{"pkg/rules", "pkg/interpreter", "pkg/walk", "pkg/drawing"},
		[]string{module + "pkg/bridge", module + "pkg/keeper", module + "pkg/resolv", "github.com/vishvananda"},
		"which rules a plan needs is computed and not looked up, so that they are shown and followed without a pod",
	},
	{
		[]string{"pkg/interpreter"},
		[]string{module + "pkg/plan", module + "pkg/rules", module + "pkg/walk", module + "pkg/drawing"},
		"it says what the rules do that it is given, not what they were meant to",
	},
	{
		[]string{"pkg/walk"},
		[]string{module + "pkg/drawing"},
		"a way is what the kernel does; how people see it is the drawing's",
	},
	{
		[]string{"pkg/nft", "pkg/rules", "pkg/keeper", "cmd/rules"},
		[]string{module + "pkg/interpreter", module + "pkg/walk", module + "pkg/drawing", module + "pkg/proxy", module + "pkg/dns", "github.com/prometheus"},
		"who writes rules handles no byte of the guest's, and explains nothing",
	},
	{
		[]string{"pkg/proxy", "pkg/dns", "cmd/proxy"},
		[]string{module + "pkg/nft", module + "pkg/rules", module + "pkg/keeper", "github.com/google/nftables"},
		"who handles the guest's bytes writes no rules",
	},
	{
		[]string{"test/lab", "test/corpus", "test/golden"},
		[]string{module + "pkg", module + "cmd", module + "certs", module + "tools", module + "test/e2e"},
		"tests inside any package use it",
	},
	{
		[]string{"cmd/webhook", "cmd/rules", "cmd/proxy", "cmd/meshvirt"},
		[]string{module + "test", module + "tools", "testing"},
		"what users run contains no test code",
	},
}

func TestImports(t *testing.T) {
	look(t)
	for _, a := range arrows {
		for _, from := range a.from {
			for _, dep := range deps(t, from) {
				for _, to := range a.to {
					if dep != module+from && (dep == to || strings.HasPrefix(dep, to+"/")) {
						t.Errorf("%s depends on %s: %s", from, dep, a.reason)
					}
				}
			}
		}
	}
}

// look lists the module's directories. The cache of test results knows what a test itself looks at, but not what go list
// does: without this a change of imports would leave the old result standing.
func look(t *testing.T) {
	t.Helper()
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && (strings.HasPrefix(d.Name(), ".git") || d.Name() == "build" || d.Name() == "testdata") {
			return filepath.SkipDir
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func deps(t *testing.T, pkg string) []string {
	t.Helper()
	out, err := exec.Command("go", "list", "-deps", module+pkg).Output()
	if err != nil {
		t.Fatalf("go list -deps %s: %v", pkg, err)
	}
	list := strings.Fields(string(out))
	if len(list) < 2 {
		t.Fatalf("go list -deps %s: %q, want the package and what it needs", pkg, out)
	}
	return list
}

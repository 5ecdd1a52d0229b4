package main

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/meshvirt/meshvirt/pkg/inventory"
)

func TestTarget(t *testing.T) {
	for arg, want := range map[string]target{
		"web":                                  {inventory.Pods, "web"},
		"pod/web":                              {inventory.Pods, "web"},
		"pods/web":                             {inventory.Pods, "web"},
		"po/web":                               {inventory.Pods, "web"},
		"Pod/web":                              {inventory.Pods, "web"},
		"vm/web":                               {inventory.Machines, "web"},
		"vms/web":                              {inventory.Machines, "web"},
		"virtualmachine/web":                   {inventory.Machines, "web"},
		"virtualmachine.kubevirt.io/web":       {inventory.Machines, "web"},
		"vmi/web":                              {inventory.Instances, "web"},
		"vmis/web":                             {inventory.Instances, "web"},
		"virtualmachineinstance/web":           {inventory.Instances, "web"},
		"virtualmachineinstances/web":          {inventory.Instances, "web"},
		"VirtualMachineInstance/web":           {inventory.Instances, "web"},
		"virtualmachineinstance.kubevirt.io/w": {inventory.Instances, "w"},
	} {
		if got, err := parseTarget(arg); err != nil || got != want {
			t.Errorf("%q: %v, error %v, want %v", arg, got, err, want)
		}
	}
	for _, arg := range []string{"", "/", "pod/", "/web", "vmi/", "secret/web", "pod/web/x", "virtualmachine.example.com/web"} {
		if got, err := parseTarget(arg); err == nil || !strings.Contains(err.Error(), "(vmi/NAME or vm/NAME)") {
			t.Errorf("%q: %v, error %v", arg, got, err)
		}
	}
}

// Whatever is wrong with the arguments is said before a cluster is asked, and shows that none was.
func TestExplainArguments(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("KUBECONFIG", empty)
	var asked atomic.Int32
	silent := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { asked.Add(1); <-r.Context().Done() }))
	defer silent.Close()
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"nothing":                 {nil, "want one pod (NAME or pod/NAME), one virtual machine (vmi/NAME or vm/NAME), or manifests (-f FILE)"},
		"two":                     {[]string{"web", "db"}, "want one pod"},
		"as kubectl get":          {[]string{"pod", "web"}, "want one pod"},
		"a name and manifests":    {[]string{"web", "-f", native}, "want one pod"},
		"a name and no manifests": {[]string{"web", "-f", ""}, "want one pod"},
		"manifests by no name":    {[]string{"-f", ""}, "-f: "},
		"of a namespace":          {[]string{"-f", native, "-n", "vms"}, "leave out --namespace, or"},
		"of a cluster":            {[]string{"-f", native, "--kubeconfig", empty, "--context", "x"}, "leave out --context --kubeconfig, or"},
		"a VMI from elsewhere":    {[]string{"web", "--vmi", pods + "masquerade-istio-ports/vmi.yaml", "--server", silent.URL}, "--vmi goes with -f"},
		"another kind":            {[]string{"secret/web", "--server", silent.URL}, `"secret/web" is neither a pod`},
		"an unknown mode":         {[]string{"web", "--mode", "teleport", "--server", silent.URL}, "want one of"},
		"no cluster":              {[]string{"web"}, "set --kubeconfig or KUBECONFIG, or give manifests by -f"},
		"no kubeconfig":           {[]string{"vmi/web", "--kubeconfig", empty + "-not"}, "no such file"},
		"nobody there":            {[]string{"vmi/web", "--server", "https://127.0.0.1:1"}, "ask the API server at https://127.0.0.1:1 for its version"},
	} {
		t.Run(name, func(t *testing.T) {
			r := meshvirt("", append([]string{"explain"}, c.args...)...)
			if r.err == nil || r.out != "" || !strings.Contains(r.err.Error(), c.want) {
				t.Errorf("error %v, output %q, want %q", r.err, r.out, c.want)
			}
		})
	}
	if asked.Load() > 0 {
		t.Errorf("%d requests for arguments that are wrong", asked.Load())
	}
	if r := meshvirt("", "explain", "web", "--server", silent.URL, "--request-timeout", "100ms"); r.err == nil || !strings.Contains(r.err.Error(), "exceeded") || asked.Load() == 0 {
		t.Errorf("error %v after %d requests, want one that ends", r.err, asked.Load())
	}
}

package node

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"github.com/meshvirt/meshvirt/pkg/annotations"
	"github.com/meshvirt/meshvirt/pkg/templates"
	"github.com/meshvirt/meshvirt/test/e2e/apiserver"
	"github.com/meshvirt/meshvirt/tools"
)

// system is the namespace that MeshVirt is installed to.
const system = apiserver.WebhookNamespace

// restricted are the labels of a namespace for the webhook.
var restricted = map[string]string{"pod-security.kubernetes.io/enforce": "restricted"}

// installed installs MeshVirt as docs/install.md says, unless it is there, and gives helm's notes.
func installed(t *testing.T, c *Cluster) (notes string) {
	t.Helper()
	kubeVirt(t, c)
	if out, err := c.Helm(t.Context(), "get", "notes", "meshvirt", "-n", system); err == nil {
		return out
	}
	do(t, c.Namespace(t.Context(), system, restricted))
	return install(t, c)
}

// install runs helm, which waits until the webhook is ready.
func install(t *testing.T, c *Cluster, args ...string) (notes string) {
	t.Helper()
	root, err := tools.Root()
	do(t, err)
	out, err := c.Helm(t.Context(), append([]string{"install", "meshvirt", filepath.Join(root, "charts/meshvirt"), "-n", system, "--create-namespace", "--wait", "--timeout", patience.String()}, args...)...)
	if err != nil {
		told, _ := c.Kubectl(t.Context(), "describe", "pods", "-n", system)
		logs, _ := c.Kubectl(t.Context(), "logs", "-n", system, "deployment/meshvirt")
		t.Fatalf("%v\n%s\n%s", err, told, logs)
	}
	return out
}

// Containers of ours run under a kubelet as they are written, in every mode that injects one, and packets
// pass as promised. The same pod opted out shows which of the paths are MeshVirt's doing.
func TestInstall(t *testing.T) {
	c := node(t)
	installed(t, c)
	otherPod, other := peerPod(t, c, "peer")
	all := []string{}
	for _, p := range paths {
		all = append(all, p.name)
	}
	for name, test := range map[string]struct {
		annotations map[string]string
		injected    map[string]confinement
		paths       []string
	}{
		"rules": {nil, map[string]confinement{templates.RulesName: {User: 0, Capabilities: []string{"CAP_NET_ADMIN"}}}, all},
		"nat-proxy": {map[string]string{annotations.Mode: "nat-proxy"}, map[string]confinement{
			templates.RulesName: {User: 0, Capabilities: []string{"CAP_NET_ADMIN"}},
			templates.ProxyName: {User: 1500},
		}, all},
		"tproxy": {map[string]string{annotations.Mode: "tproxy"}, map[string]confinement{
			templates.RulesName: {User: 0, Capabilities: []string{"CAP_NET_ADMIN"}},
			templates.ProxyName: {User: 0, Capabilities: []string{"CAP_NET_RAW"}},
		}, all},
		"opted-out": {map[string]string{annotations.Inject: "false"}, map[string]confinement{}, []string{"tcp out", "tcp in"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pod := running(t, c, launch(t, c, "vm-"+name, test.annotations))
			if diff := cmp.Diff(test.injected, confinements(t, c, pod)); diff != "" {
				t.Errorf("containers of ours as the runtime was told (-want +got)\n%s", diff)
			}
			guest, err := c.StartGuest(t.Context(), pod, "v1.9.0-istio-ports-22-80-ipv4")
			do(t, err)
			defer guest.Close()
			tables, err := guest.Pod.Run(exec.Command("nft", "list", "tables"))
			do(t, err)
			if has := strings.Contains(tables, "table inet meshvirt\n"); has != (len(test.injected) > 0) {
				t.Errorf("tables in the pod's network namespace, with %d containers of ours:\n%s", len(test.injected), tables)
			}
			if got := travel(t, c, pod, guest.Client, otherPod, other); !slices.Equal(got, test.paths) {
				t.Errorf("of the paths %v are as they should be, want %v", got, test.paths)
			}
		})
	}
}

// confinement is what the container runtime was told about a container.
type confinement struct {
	User         uint32
	Capabilities []string
}

// confinements gives that of the pod's containers that MeshVirt injected, ended ones too. What all have is
// checked: no further privileges, a seccomp profile, a root that is read-only.
func confinements(t *testing.T, c *Cluster, pod *corev1.Pod) map[string]confinement {
	t.Helper()
	all := map[string]confinement{}
	for name := range ours(pod) {
		id, err := containerID(pod, name)
		do(t, err)
		text, err := c.ctr(t.Context(), "containers", "info", id)
		do(t, err)
		var info struct {
			Spec struct {
				Process struct {
					NoNewPrivileges bool
					User            struct{ UID uint32 }
					Capabilities    struct{ Bounding, Effective, Permitted, Ambient []string }
				}
				Root  struct{ Readonly bool }
				Linux struct {
					Seccomp *struct{ DefaultAction string }
				}
			}
		}
		do(t, json.Unmarshal([]byte(text), &info))
		p := info.Spec.Process
		if !p.NoNewPrivileges || !info.Spec.Root.Readonly || info.Spec.Linux.Seccomp == nil || info.Spec.Linux.Seccomp.DefaultAction != "SCMP_ACT_ERRNO" {
			t.Errorf("%s: noNewPrivileges %t, readonly root %t, seccomp %+v; want all three", name, p.NoNewPrivileges, info.Spec.Root.Readonly, info.Spec.Linux.Seccomp)
		}
		all[name] = confinement{p.User.UID, p.Capabilities.Bounding}
	}
	return all
}

// shell runs a line as its user has it, with kubectl and the plugin for it, and gives its output.
func (c *Cluster) shell(ctx context.Context, line string) (string, error) {
	script := fmt.Sprintf("PATH=%s:%s:$PATH KUBECONFIG=%s; export PATH KUBECONFIG\n", c.programs, filepath.Join(c.dir, "bin"), c.admin)
	return command(ctx, "sh", "-euc", script+line)
}

// What a user sees of it with kubectl, by what helm's notes and the README say.
func TestShow(t *testing.T) {
	c := node(t)
	notes := installed(t, c)
	pod := running(t, c, launch(t, c, "vm-shown", nil))

	var told string
	await1(t, "an event about the VMI", func() bool {
		told = kubectl(t, c, "describe", "vmi", "-n", vms, "vm-shown")
		return strings.Contains(told, "MeshJoined")
	})
	t.Log(told[strings.Index(told, "Events:"):])
	if want := "meshvirt-webhook  Joined istio in mode rules (MasqueradeSidecar). A VM with masquerade binding"; !strings.Contains(told, want) {
		t.Errorf("kubectl describe vmi\n%s\nwant %q", told, want)
	}

	run := func(line string) string {
		out, err := c.shell(t.Context(), line)
		do(t, err)
		return out
	}
	commands := 0
	for line := range strings.Lines(notes) {
		if line = strings.TrimSpace(line); strings.HasPrefix(line, "kubectl ") {
			commands++
			out := run(strings.NewReplacer("vmi NAME", "vmi -n "+vms+" vm-shown", "vmi/NAME", "-n "+vms+" vmi/vm-shown").Replace(line))
			t.Logf("%s\n%s", line, out)
			if strings.Contains(line, "meshvirt check") && !strings.HasPrefix(out, "All is well: MeshVirt") {
				t.Errorf("%s\n%s", line, out)
			}
		}
	}
	if commands < 5 {
		t.Errorf("helm's notes have %d commands\n%s", commands, notes)
	}

	manifest := filepath.Join(t.TempDir(), "pod.yaml")
	yaml := kubectl(t, c, "get", "pod", "-n", vms, pod.Name, "-o", "yaml")
	do(t, os.WriteFile(manifest, []byte(yaml), 0o600))
	if out := run("kubectl meshvirt explain -f " + manifest); !strings.Contains(out, "rules") {
		t.Errorf("kubectl meshvirt explain\n%s", out)
	}
}

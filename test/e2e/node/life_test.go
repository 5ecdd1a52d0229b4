package node

import (
	"cmp"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvirt/meshvirt/pkg/templates"
	"github.com/meshvirt/meshvirt/tools"
)

const (
	// loadRate is how many virt-launcher pods a second are created, at most.
	loadRate = 10
	// loadThreads is how many are in the making at a time, as virt-controller has it by default.
	loadThreads = 10
)

// tally is what became of pods.
type tally struct{ created, refused, unadapted int }

// underLoad calls f while virt-launcher pods are created, and a while longer. None may be refused, none
// unadapted.
func underLoad(t *testing.T, c *Cluster, name string, f func()) {
	t.Helper()
	count, err := load(t, c, name, f)
	if count.created == 0 || count.refused+count.unadapted > 0 {
		t.Errorf("of %d pods %d were refused (the first: %v) and %d not adapted, want none", count.created, count.refused, err, count.unadapted)
	}
	t.Logf("%s: %d pods", name, count.created)
}

// load is underLoad without a judgement; err is of the first pod that was refused. No node takes the pods, and in the end
// they are deleted.
func load(t *testing.T, c *Cluster, name string, f func()) (count tally, err error) {
	t.Helper()
	pod := launcher(t, c, name, nil)
	pod.Spec.NodeSelector["nowhere"] = "true"
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var wg sync.WaitGroup
	var creating errgroup.Group
	creating.SetLimit(loadThreads)
	var mu sync.Mutex
	create := func() error {
		got, refusal := c.Admit(t.Context(), vms, pod)
		mu.Lock()
		defer mu.Unlock()
		count.created++
		if refusal != nil {
			count.refused++
			err = cmp.Or(err, refusal)
		} else if !adapted(got) {
			count.unadapted++
		}
		return nil
	}
	wg.Go(func() {
		tick := time.NewTicker(time.Second / loadRate)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				creating.Go(create)
			}
		}
	})
	f()
	created := func() int {
		mu.Lock()
		defer mu.Unlock()
		return count.created
	}
	enough := created() + loadRate
	await1(t, "pods that are created after the change", func() bool { return created() >= enough })
	stop()
	wg.Wait()
	_ = creating.Wait() // create counts what fails
	kubectl(t, c, "delete", "pods", "-n", vms, "--field-selector=status.phase=Pending", "--wait=false")
	return count, err
}

// upgrade changes a value as docs/install.md says, and returns when the old pods are gone.
func upgrade(t *testing.T, c *Cluster, value string) {
	t.Helper()
	root, err := tools.Root()
	do(t, err)
	_, err = c.Helm(t.Context(), "upgrade", "meshvirt", filepath.Join(root, "charts/meshvirt"), "-n", system, "--reset-then-reuse-values",
		"--set", value, "--wait", "--timeout", patience.String())
	do(t, err)
	await1(t, "the old pods of the webhook are gone", func() bool {
		var list corev1.PodList
		do(t, c.Client.List(t.Context(), &list, client.InNamespace(system)))
		return len(list.Items) == 2
	})
}

// webhookPods gives the names of the pods that run and are not about to end.
func webhookPods(t *testing.T, c *Cluster) []string {
	t.Helper()
	var list corev1.PodList
	do(t, c.Client.List(t.Context(), &list, client.InNamespace(system), client.MatchingLabels{"app.kubernetes.io/component": "webhook"}))
	var names []string
	for _, pod := range list.Items {
		if pod.DeletionTimestamp == nil {
			names = append(names, pod.Name)
		}
	}
	slices.Sort(names)
	return names
}

// Virtual machines start while the webhook's pods come and go: one is deleted, then all are replaced by an
// upgrade, whose other values later pods have.
func TestReplace(t *testing.T) {
	c := node(t)
	installed(t, c)
	before := webhookPods(t, c)
	if len(before) != 2 {
		t.Fatalf("webhook pods %v, want 2", before)
	}
	underLoad(t, c, "vm-load", func() {
		kubectl(t, c, "delete", "pod", "-n", system, before[0], "--wait=false")
		kubectl(t, c, "rollout", "status", "-n", system, "deployment/meshvirt", "--timeout", patience.String())
		upgrade(t, c, "dataPlane.rulesResources.requests.cpu=23m")
	})
	if after := webhookPods(t, c); slices.ContainsFunc(after, func(name string) bool { return slices.Contains(before, name) }) {
		t.Errorf("webhook pods were %v and are %v, want all new", before, after)
	}
	pod := launch(t, c, "vm-upgraded", nil)
	if cpu := ours(pod)[templates.RulesName].Resources.Requests[corev1.ResourceCPU]; cpu.String() != "23m" {
		t.Errorf("after the upgrade %s asks for %s of CPU, want 23m", templates.RulesName, &cpu)
	}
}

// section gives the indented lines below a heading of a page, without comments.
func section(page, heading string) []string {
	var lines []string
	in := false
	for line := range strings.Lines(page) {
		if strings.HasPrefix(line, "## ") {
			in = strings.TrimSpace(line) == heading
		}
		if in && strings.HasPrefix(line, "    ") {
			line, _, _ = strings.Cut(line, "#")
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}

// uninstall does what docs/install.md says, if MeshVirt is installed.
func uninstall(t *testing.T, c *Cluster) {
	t.Helper()
	if _, err := c.Helm(t.Context(), "status", "meshvirt", "-n", system); err != nil {
		return
	}
	root, err := tools.Root()
	do(t, err)
	page, err := os.ReadFile(filepath.Join(root, "docs/install.md"))
	do(t, err)
	commands := section(string(page), "## Uninstall")
	if len(commands) != 3 {
		t.Fatalf("docs/install.md uninstalls by %q, want 3 commands", commands)
	}
	for _, line := range commands {
		args := strings.Fields(line)
		run := c.Kubectl
		if args[0] == "helm" {
			run = c.Helm
		}
		out, err := run(t.Context(), args[1:]...)
		do(t, err)
		t.Logf("%s\n%s", line, out)
	}
}

// Uninstalled, MeshVirt leaves nothing, and virtual machines start as the mesh alone has them.
func TestUninstall(t *testing.T) {
	c := node(t)
	installed(t, c)
	uninstall(t, c)
	kinds := kubectl(t, c, "api-resources", "--verbs=list", "-o", "name")
	found := kubectl(t, c, "get", strings.Join(strings.Fields(kinds), ","), "-A", "-o", "name", "--ignore-not-found")
	if !strings.Contains(found, "namespace/"+vms) {
		t.Errorf("kubectl get finds not even the test's namespace:\n%s", found)
	}
	for line := range strings.Lines(found) {
		if strings.Contains(line, "meshvirt") && !strings.HasPrefix(line, "event") { // events end by themselves
			t.Errorf("left behind: %s", line)
		}
	}
	pod := running(t, c, launch(t, c, "vm-after", nil))
	if adapted(pod) || len(ours(pod)) > 0 {
		t.Errorf("the pod is adapted")
	}
}

// A certificate that is the user's own, or cert-manager's, comes as a mounted Secret: the webhook, which is
// not root, can read it.
func TestMountedCertificate(t *testing.T) {
	c := node(t)
	uninstall(t, c)
	kubeVirt(t, c)
	ctx := t.Context()
	crt, key, ca, err := c.Issue("meshvirt." + system + ".svc")
	do(t, err)
	dir := t.TempDir()
	for name, content := range map[string][]byte{"tls.crt": crt, "tls.key": key, "ca.crt": ca} {
		do(t, os.WriteFile(filepath.Join(dir, name), content, 0o600))
	}
	do(t, c.Namespace(ctx, system, restricted))
	kubectl(t, c, "create", "secret", "tls", "meshvirt-tls", "-n", system, "--cert="+filepath.Join(dir, "tls.crt"), "--key="+filepath.Join(dir, "tls.key"))
	install(t, c, "--set=webhook.certificateSecret=meshvirt-tls", "--set-file=webhook.caBundle="+filepath.Join(dir, "ca.crt"))
	pod := launcher(t, c, "vm-mounted", nil)
	await1(t, "the Service leads to the webhook", func() bool { // kube-proxy hears of ready pods when helm does
		_, err := c.Admit(ctx, vms, pod, client.DryRunAll)
		return err == nil
	})
	if pod, err = c.Admit(ctx, vms, pod); err != nil || !adapted(pod) {
		t.Errorf("the pod is not adapted: error %v, %+v", err, pod)
	}
}

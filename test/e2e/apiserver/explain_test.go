package apiserver

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbac "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/meshvirt/meshvirt/pkg/plan"
)

// explained is what tests read of an explanation.
type explained struct {
	Pod, Chosen, Reason        string
	Mode                       plan.Mode
	Unknown, Warnings, Changes []string
	Plan                       *plan.Plan
}

// explain runs the command. Either it prints, or it fails and says why.
func (c *checked) explain(t *testing.T, args ...string) (out, failure string) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd := exec.Command(c.program, append([]string{"explain"}, args...)...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); (err == nil) != (stderr.Len() == 0) || (err == nil) != (stdout.Len() > 0) {
		t.Fatalf("%v: error %v, output %q, messages %q", args, err, stdout.String(), stderr.String())
	}
	return stdout.String(), stderr.String()
}

// named explains what is named, as an administrator.
func (c *checked) named(t *testing.T, args ...string) (x explained, out string) {
	t.Helper()
	return c.as(t, c.kubeconfig, args...)
}

func (c *checked) as(t *testing.T, kubeconfig string, args ...string) (x explained, out string) {
	t.Helper()
	out, failure := c.explain(t, append(args, "-o", "json", "--kubeconfig="+kubeconfig, "-n", factsNamespace)...)
	if failure != "" {
		t.Fatal(failure)
	}
	if err := json.Unmarshal([]byte(out), &x); err != nil {
		t.Fatal(err)
	}
	return x, out
}

// fails wants each of the texts in the error.
func (c *checked) fails(t *testing.T, kubeconfig, name string, want ...string) {
	t.Helper()
	out, failure := c.explain(t, name, "--kubeconfig="+kubeconfig, "-n", factsNamespace)
	for _, w := range want {
		if !strings.Contains(failure, w) {
			t.Errorf("%s: %q is missing in %q, output %q", name, w, failure, out)
		}
	}
}

// file writes an object as "kubectl get -o json" does.
func (c *checked) file(t *testing.T, object *unstructured.Unstructured) string {
	t.Helper()
	c.get(t, object)
	b, err := object.MarshalJSON()
	file := filepath.Join(t.TempDir(), "object.json")
	if err == nil {
		err = os.WriteFile(file, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	return file
}

func podObject(name string) *unstructured.Unstructured {
	u := virtualObject("Pod", name)
	u.SetAPIVersion("v1")
	return u
}

//	kubectl meshvirt explain ──► API server: pod ──► VMI, namespace, webhook's Deployment
//
// One virtual machine's pod is adapted, another's was created past the webhook. Their guests have addresses that only the
// VMI tells.
func TestExplain(t *testing.T) {
	for name, release := range map[string]struct {
		start     func(dir string) (*Cluster, error)
		corpus    [2]string
		byDefault plan.Mode // what becomes of the default mode nat-proxy
	}{"newest": {Start, newestCorpus, plan.NATProxy}, "oldest": {StartOldest, oldestCorpus, plan.Rules}} {
		t.Run(name, func(t *testing.T) { testExplain(t, startChecked(t, release.start, release.corpus), release.byDefault) })
	}
}

func testExplain(t *testing.T, c *checked, byDefault plan.Mode) {
	ctx := t.Context()
	ofWeb := func(vmi *unstructured.Unstructured) {
		controller := true
		vmi.SetOwnerReferences([]metav1.OwnerReference{{APIVersion: "kubevirt.io/v1", Kind: "VirtualMachine", Name: "web", UID: "1", Controller: &controller}})
	}
	web, _ := c.admit(t, factsNamespace, c.vm(t, factsNamespace, custom, "web", true, ofWeb))
	raw := c.vm(t, factsNamespace, custom, "late", true, nil)
	c.webhook.stop()
	set := `[{"op":"replace","path":"/webhooks/0/failurePolicy","value":"Ignore"}]`
	if err := c.Client.Patch(ctx, ours(), client.RawPatch(types.JSONPatchType, []byte(set))); err != nil {
		t.Fatal(err)
	}
	var late *corev1.Pod
	c.await(t, "a pod is admitted without the webhook", func() bool {
		got, err := c.Admit(ctx, factsNamespace, raw)
		late = got
		return err == nil
	})
	c.patch(t, &corev1.Service{ObjectMeta: inWebhookNamespace(serviceName)}, `{"spec":{"type":"ClusterIP","externalName":null}}`)

	t.Run("as by -f", func(t *testing.T) {
		for pod, vmi := range map[*corev1.Pod]string{web: "web", late: "late"} {
			x, got := c.named(t, pod.Name)
			file := c.file(t, podObject(pod.Name))
			want, failure := c.explain(t, "-o", "json", "-f", file, "--vmi", c.file(t, virtualObject("VirtualMachineInstance", vmi)))
			if diff := cmp.Diff(want, got); diff != "" || failure != "" {
				t.Errorf("%s: %s (-file +cluster)\n%s", vmi, failure, diff)
			}
			if x.Pod != pod.Name || x.Plan == nil || x.Plan.Guest.IPv4.String() != "10.11.12.2" || len(x.Unknown) > 0 || (len(x.Changes) > 0) == adapted(pod) {
				t.Errorf("%s: %+v, want the guest's address from the VMI, and changes if the pod is not adapted", vmi, x)
			}
			if vmi == "late" { // which has its sibling: the file alone knows less
				if alone, _ := c.explain(t, "-o", "json", "-f", file); alone == want {
					t.Error("the VMI makes no difference to the file")
				}
			}
			text, _ := c.explain(t, "pod/"+pod.Name, "--kubeconfig="+c.kubeconfig, "-n", factsNamespace)
			if y, _ := c.explain(t, "-o", "yaml", pod.Name, "--kubeconfig="+c.kubeconfig, "-n", factsNamespace); !strings.HasPrefix(text, "pod vms/"+pod.Name+"\n  mode    rules\n") || !sameObject(t, y, got) {
				t.Errorf("%s as text, and in YAML\n%s\n%s", vmi, text, y)
			}
		}
	})

	t.Run("a virtual machine leads to its pod", func(t *testing.T) {
		for _, name := range []string{"vmi/web", "vm/web", "virtualmachineinstance/web", "virtualmachine/web"} {
			if x, _ := c.named(t, name); x.Pod != web.Name || x.Chosen != "the pod of VirtualMachineInstance vms/web" {
				t.Errorf("%s: %+v, want %s", name, x, web.Name)
			}
		}
		target := c.migrate(t, web)
		if x, _ := c.named(t, "vmi/web"); x.Pod != target.Name || !strings.HasSuffix(x.Chosen, "as the target of a migration is; not "+web.Name) {
			t.Errorf("while it migrates: %+v, want %s", x, target.Name)
		}
		target.Status.Phase = corev1.PodFailed
		if err := c.Client.Status().Update(ctx, target); err != nil {
			t.Fatal(err)
		}
		if x, _ := c.named(t, "vm/web"); x.Pod != web.Name {
			t.Errorf("after a migration failed: %+v, want %s", x, web.Name)
		}
	})

	t.Run("what is around the pod", func(t *testing.T) {
		label := func(patch string) {
			c.patch(t, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: factsNamespace}}, `{"metadata":{"labels":`+patch+`}}`)
		}
		label(`{"meshvirt.io/inject":"disabled"}`)
		if x, _ := c.named(t, late.Name); x.Reason != "OptedOut" {
			t.Errorf("%+v in a namespace that opts out", x)
		}
		still := func(t *testing.T, what string) { // the adapted pod is what it is
			t.Helper()
			if x, _ := c.named(t, web.Name); x.Mode != plan.Rules || x.Reason != "MasqueradeSidecar" || len(x.Changes) > 0 {
				t.Errorf("%+v, which is adapted; %s", x, what)
			}
		}
		still(t, "the namespace opted out")
		label(`{"meshvirt.io/inject":null}`)
		vmi := virtualObject("VirtualMachineInstance", "web")
		c.patch(t, vmi, `{"metadata":{"annotations":{"meshvirt.io/mode":"native"}}}`)
		still(t, "the VMI has another mode for the next pod")
		c.patch(t, vmi, `{"metadata":{"annotations":{"meshvirt.io/mode":null}}}`)
		deployment := &appsv1.Deployment{ObjectMeta: inWebhookNamespace(serviceName)}
		c.get(t, deployment)
		before := deployment.Spec.Template.Spec.Containers[0].Args
		set := func(args []string) {
			deployment.Spec.Template.Spec.Containers[0].Args = args
			if err := c.Client.Update(ctx, deployment); err != nil {
				t.Fatal(err)
			}
		}
		set(append(slices.Clone(before), "--default-mode=nat-proxy"))
		if x, _ := c.named(t, late.Name); x.Mode != byDefault {
			t.Errorf("mode %s with default nat-proxy, want %s", x.Mode, byDefault)
		}
		still(t, "the default mode is another")
		if x, _ := c.named(t, late.Name, "--mode", "native"); x.Mode != plan.Native {
			t.Errorf("mode %s is asked for, want native", x.Mode)
		}
		set(before)
		if x, _ := c.named(t, late.Name); x.Mode != plan.Rules {
			t.Errorf("mode %s with the chart's default, want rules", x.Mode)
		}
	})

	t.Run("what is not there", func(t *testing.T) {
		c.create(t, virtualObject("VirtualMachine", "stopped"))
		c.vm(t, factsNamespace, custom, "starting", true, func(vmi *unstructured.Unstructured) {
			vmi.Object["status"] = map[string]any{"conditions": []any{map[string]any{"type": "Synchronized", "status": "False", "message": "no such claim"}}}
		})
		c.fails(t, c.kubeconfig, "missing", "there is no Pod vms/missing: ", "say vmi/missing")
		c.fails(t, c.kubeconfig, "vmi/missing", "there is no VirtualMachineInstance vms/missing: ", "kubectl get vm,vmi -n vms")
		c.fails(t, c.kubeconfig, "vm/missing", "there is no VirtualMachine vms/missing: ")
		c.fails(t, c.kubeconfig, "vm/late", "there is no VirtualMachine vms/late: ") // its VMI is nobody's
		c.fails(t, c.kubeconfig, "vmi/starting", "VirtualMachineInstance vms/starting has no pod that has not ended (no such claim): ")
		for _, name := range []string{"vm/stopped", "vmi/stopped"} {
			c.fails(t, c.kubeconfig, name, "VirtualMachine vms/stopped does not run", "virtctl start -n vms stopped")
		}
	})

	t.Run("a VMI that the pod is not of", func(t *testing.T) {
		const uid = "916411a0-cfc8-42c7-9e06-111111111111"
		for vmi, why := range map[string]string{
			"late": fmt.Sprintf("vms/late has uid %s, and the pod's owner %s", late.OwnerReferences[0].UID, uid),
			"gone": "there is no vms/gone",
		} {
			pod, name := raw.DeepCopy(), "of-another-"+vmi
			pod.GenerateName, pod.Name = "", name
			pod.OwnerReferences[0].Name, pod.OwnerReferences[0].UID = vmi, uid
			if _, err := c.Admit(ctx, factsNamespace, pod); err != nil {
				t.Fatal(err)
			}
			if x, _ := c.named(t, name); !strings.Contains(strings.Join(x.Warnings, "\n"), "the VirtualMachineInstance is not known ("+why+"): decided by the pod alone") {
				t.Errorf("%s: warnings %q, want %q", name, x.Warnings, why)
			}
		}
	})

	t.Run("rights", func(t *testing.T) { c.explainRights(t, late) })

	t.Run("completion", func(t *testing.T) {
		for typed, want := range map[string][]string{
			"":     {web.Name, late.Name, "vmi/web", "vmi/late"},
			"pod/": {"pod/" + web.Name}, "vmi/w": {"vmi/web"}, "vm/": {"vm/stopped"},
		} {
			out, err := exec.Command(c.program, "__completeNoDesc", "explain", "--kubeconfig="+c.kubeconfig, "-n", factsNamespace, typed).Output()
			for _, w := range want {
				if err != nil || !strings.Contains("\n"+string(out), "\n"+w+"\n") {
					t.Errorf("%q: %q is missing in %q, error %v", typed, w, out, err)
				}
			}
		}
	})

	t.Run("MeshVirt is not installed", func(t *testing.T) {
		c.remove(t, ours())
		if x, _ := c.named(t, late.Name); x.Mode != plan.Rules || len(x.Unknown) != 1 || !strings.HasSuffix(x.Unknown[0], "MeshVirt is not installed") {
			t.Errorf("%+v", x)
		}
	})

	t.Run("no KubeVirt", func(t *testing.T) {
		for _, name := range []string{"virtualmachines", "virtualmachineinstances"} {
			crd := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition"}}
			crd.SetName(name + ".kubevirt.io")
			c.remove(t, crd)
			c.await(t, "no "+name, func() bool {
				return c.rest.Get().AbsPath("/apis/kubevirt.io/v1/"+name).Do(ctx).Error() != nil
			})
		}
		const why = "the API server does not know virtualmachineinstances.kubevirt.io, is KubeVirt installed?"
		if x, _ := c.named(t, late.Name); x.Mode != plan.Rules || !strings.Contains(strings.Join(x.Warnings, "\n"), "the VirtualMachineInstance is not known ("+why+")") {
			t.Errorf("%+v, want the pod by itself, and a warning", x)
		}
		c.fails(t, c.kubeconfig, "vm/web", "there is no VirtualMachine vms/web: "+why)
		c.fails(t, c.kubeconfig, "vmi/web", "there is no VirtualMachineInstance vms/web: "+why)
	})
}

// migrate makes a second pod of the same virtual machine, which is younger by the clock of the API server.
func (c *checked) migrate(t *testing.T, source *corev1.Pod) *corev1.Pod {
	t.Helper()
	time.Sleep(time.Until(source.CreationTimestamp.Add(time.Second)))
	pod := source.DeepCopy()
	pod.ObjectMeta = metav1.ObjectMeta{GenerateName: source.GenerateName, Labels: source.Labels, Annotations: source.Annotations, OwnerReferences: source.OwnerReferences}
	target, err := c.Admit(t.Context(), factsNamespace, pod)
	if err != nil {
		t.Fatal(err)
	}
	return target
}

// explainRights explains as a user without rights, and with more and more of them.
func (c *checked) explainRights(t *testing.T, pod *corev1.Pod) {
	kubeconfig, err := c.Kubeconfig("onlooker")
	if err != nil {
		t.Fatal(err)
	}
	c.fails(t, kubeconfig, pod.Name, "read Pod vms/"+pod.Name+": ", `User "onlooker" cannot get resource "pods"`, "ask for the rights in docs/check.md, or give the pod by -f")
	c.fails(t, kubeconfig, "vmi/late", "read VirtualMachineInstance vms/late: ", `cannot get resource "virtualmachineinstances"`, "by -f")
	may := func(name string, rule rbac.PolicyRule) {
		role := &rbac.Role{ObjectMeta: metav1.ObjectMeta{Namespace: factsNamespace, Name: name}, Rules: []rbac.PolicyRule{rule}}
		c.create(t, role)
		c.create(t, &rbac.RoleBinding{
			ObjectMeta: metav1.ObjectMeta{Namespace: factsNamespace, Name: name}, RoleRef: rbac.RoleRef{APIGroup: rbac.GroupName, Kind: "Role", Name: name},
			Subjects: []rbac.Subject{{APIGroup: rbac.GroupName, Kind: rbac.UserKind, Name: "onlooker"}},
		})
	}
	await := func(name string) (x explained) { // authorization learns of a binding a moment after it is stored
		c.await(t, "the right to explain "+name, func() bool {
			_, failure := c.explain(t, name, "--kubeconfig="+kubeconfig, "-n", factsNamespace)
			return failure == ""
		})
		x, _ = c.as(t, kubeconfig, name)
		return x
	}
	may("pods", rbac.PolicyRule{APIGroups: []string{""}, Resources: []string{"pods"}, Verbs: []string{"get"}})
	x := await(pod.Name)
	unknown := strings.Join(x.Unknown, "\n")
	for _, want := range []string{
		`whether namespace vms opts out, and which Pod Security level it enforces: namespaces "vms" is forbidden`,
		"the webhook's default mode and image, taken for auto and ", "mutatingwebhookconfigurations.admissionregistration.k8s.io is forbidden",
	} {
		if !strings.Contains(unknown, want) {
			t.Errorf("%q is missing in %q", want, unknown)
		}
	}
	if x.Mode != plan.Rules || x.Plan.Guest.IPv4.String() != "10.0.2.2" || !strings.Contains(strings.Join(x.Warnings, "\n"), "the VirtualMachineInstance is not known (virtualmachineinstances.kubevirt.io \"late\" is forbidden") {
		t.Errorf("%+v, want the pod by itself, and a warning", x)
	}
	c.fails(t, kubeconfig, "vm/late", "read VirtualMachineInstance vms/late: ")
	may("machines", rbac.PolicyRule{APIGroups: []string{"kubevirt.io"}, Resources: []string{"virtualmachineinstances"}, Verbs: []string{"get"}})
	c.await(t, "the right to get VMIs", func() bool {
		x, _ := c.as(t, kubeconfig, pod.Name)
		return x.Plan.Guest.IPv4.String() == "10.11.12.2"
	})
	c.fails(t, kubeconfig, "vmi/late", "read the pods of VirtualMachineInstance vms/late: ", "cannot list resource")
	c.fails(t, kubeconfig, "vm/late", "read VirtualMachine vms/late: ", "cannot get resource")
	c.fails(t, kubeconfig, "vmi/missing", "there is no VirtualMachineInstance vms/missing: ")
	may("list", rbac.PolicyRule{APIGroups: []string{""}, Resources: []string{"pods"}, Verbs: []string{"list"}})
	if x := await("vmi/late"); x.Pod != pod.Name {
		t.Errorf("%+v, want %s", x, pod.Name)
	}
}

func sameObject(t *testing.T, a, b string) bool {
	t.Helper()
	var x, y any
	if err := yaml.Unmarshal([]byte(a), &x); err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal([]byte(b), &y); err != nil {
		t.Fatal(err)
	}
	return cmp.Equal(x, y)
}

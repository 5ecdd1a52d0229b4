package apiserver

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	admissionregistration "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	rbac "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/meshvirt/meshvirt/pkg/check"
	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/templates"
	"github.com/meshvirt/meshvirt/tools"
)

// checked is a cluster, and the command that checks it.
type checked struct {
	*factsCluster
	program, kubeconfig string
}

// run gives the codes that the command finds, and what it prints as text. Its exit code must fit them.
func (c *checked) run(t *testing.T, kubeconfig string, args ...string) (codes []check.Code, text string) {
	t.Helper()
	args = append([]string{"check", "--kubeconfig=" + kubeconfig}, args...)
	command := func(args ...string) (string, bool) {
		var out, errOut bytes.Buffer
		cmd := exec.Command(c.program, args...)
		cmd.Stdout, cmd.Stderr = &out, &errOut
		err := cmd.Run()
		if exit := (*exec.ExitError)(nil); err != nil && (!errors.As(err, &exit) || exit.ExitCode() != 1 || out.Len() == 0) {
			t.Fatalf("%v: %v\n%s", args, err, errOut.String())
		}
		return out.String(), err != nil
	}
	out, failed := command(append(args, "-o", "json")...)
	var r check.Report
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatal(err)
	}
	for _, f := range r.Findings {
		codes = append(codes, f.Code)
	}
	if failed != (r.Count(check.Error) > 0) {
		t.Errorf("exit code 1: %t, errors: %d", failed, r.Count(check.Error))
	}
	text, _ = command(args...)
	return codes, text
}

// want runs the command as an administrator.
func (c *checked) want(t *testing.T, want ...check.Code) (text string) {
	t.Helper()
	got, text := c.run(t, c.kubeconfig, "-n", factsNamespace)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s%s", diff, text)
	}
	return text
}

func (c *checked) patch(t *testing.T, object client.Object, patch string) {
	t.Helper()
	if err := c.Client.Patch(t.Context(), object, client.RawPatch(types.MergePatchType, []byte(patch))); err != nil {
		t.Fatal(err)
	}
}

func (c *checked) create(t *testing.T, object client.Object) {
	t.Helper()
	object.SetResourceVersion("")
	if err := c.Client.Create(t.Context(), object); err != nil {
		t.Fatal(err)
	}
}

func (c *checked) remove(t *testing.T, object client.Object) {
	t.Helper()
	if err := c.Client.Delete(t.Context(), object, client.GracePeriodSeconds(0)); err != nil {
		t.Fatal(err)
	}
}

func (c *checked) get(t *testing.T, object client.Object) {
	t.Helper()
	if err := c.Client.Get(t.Context(), client.ObjectKeyFromObject(object), object); err != nil {
		t.Fatal(err)
	}
}

func ours() *admissionregistration.MutatingWebhookConfiguration {
	return &admissionregistration.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: configurationName}}
}

func inWebhookNamespace(name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: WebhookNamespace, Name: name}
}

func virtualObject(kind, name string) *unstructured.Unstructured {
	u := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "kubevirt.io/v1", "kind": kind}}
	u.SetNamespace(factsNamespace)
	u.SetName(name)
	return u
}

// startChecked starts a cluster in which all is well: the chart, KubeVirt's API, and a virtual machine whose pod the webhook
// has adapted. The webhook is gone by then, or it would repair what tests break; EndpointSlices say that it is there.
func startChecked(t *testing.T, start func(dir string) (*Cluster, error), corpus [2]string) *checked {
	t.Helper()
	if err := tools.Uses("cmd/meshvirt", "docs/check.md"); err != nil {
		t.Fatal(err)
	}
	c := &checked{factsCluster: startFacts(t, start, corpus), kubeconfig: filepath.Join(t.TempDir(), "kubeconfig")}
	var err error
	if c.program, err = build(t.TempDir(), "meshvirt"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(c.kubeconfig, c.env.KubeConfig, 0o600); err != nil {
		t.Fatal(err)
	}
	c.want(t, check.NoKubeVirt)
	c.serveVMIs(t)
	c.await(t, "the webhook knows of VMIs", func() bool { c.awaitQuestions(t); return true })
	c.create(t, CRD("VirtualMachine", "vm"))
	c.await(t, "VirtualMachines are served", func() bool {
		return c.rest.Get().AbsPath("/apis/kubevirt.io/v1/virtualmachines").Do(t.Context()).Error() == nil
	})
	return c
}

// vmNamed makes a VirtualMachine, its VMI and its pod, and admits that.
func (c *checked) vmNamed(t *testing.T, name string, uid types.UID) *corev1.Pod {
	t.Helper()
	pod := c.vm(t, factsNamespace, "masquerade-istio-ports", name, true, func(vmi *unstructured.Unstructured) {
		vmi.SetUID(uid)
		vm := virtualObject("VirtualMachine", name)
		vm.Object["spec"] = map[string]any{"template": map[string]any{
			"metadata": map[string]any{"annotations": vmi.Object["metadata"].(map[string]any)["annotations"]}, "spec": vmi.Object["spec"],
		}}
		c.create(t, vm)
	})
	admitted, err := c.Admit(t.Context(), factsNamespace, pod)
	if err != nil {
		t.Fatal(err)
	}
	return admitted
}

//	kubectl meshvirt check ──► API server ◄── the chart, broken in one thing at a time
//
// Each fault is really put into the cluster, found, and gone when it is repaired.
func TestCheck(t *testing.T) {
	for name, release := range map[string]struct {
		start  func(dir string) (*Cluster, error)
		corpus [2]string
	}{"newest": {Start, newestCorpus}, "oldest": {StartOldest, oldestCorpus}} {
		t.Run(name, func(t *testing.T) { testCheck(t, startChecked(t, release.start, release.corpus)) })
	}
}

func testCheck(t *testing.T, c *checked) {
	ctx := t.Context()
	pod := c.vmNamed(t, "web", "916411a0-cfc8-42c7-9e06-000000000001")
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: factsNamespace}}
	enforce := func(level string) {
		c.patch(t, namespace, `{"metadata":{"labels":{"pod-security.kubernetes.io/enforce":`+level+`}}}`)
	}
	// What the API server says of the next pod while the namespace refuses it, and while the webhook does not answer.
	enforce(`"baseline"`)
	next := c.vm(t, factsNamespace, "masquerade-istio-ports", "next", false, nil)
	_, refused := c.Admit(ctx, factsNamespace, next, client.DryRunAll)
	enforce(`null`)
	c.tries(t, enforce)
	c.webhook.stop()
	if text := c.try(t, check.Unanswered); !strings.Contains(text, "failed calling webhook") {
		t.Errorf("--try: %s", text)
	}
	_, unanswered := c.Admit(ctx, factsNamespace, next, client.DryRunAll)
	if refused == nil || unanswered == nil {
		t.Fatalf("errors %v, %v; want both", refused, unanswered)
	}

	service := &corev1.Service{ObjectMeta: inWebhookNamespace(serviceName)}
	c.patch(t, service, `{"spec":{"type":"ClusterIP","externalName":null}}`)
	slice := &discovery.EndpointSlice{ObjectMeta: inWebhookNamespace("meshvirt-1"), AddressType: discovery.AddressTypeIPv4}
	slice.Labels = map[string]string{discovery.LabelServiceName: serviceName}
	for _, address := range []string{"10.1.1.1", "10.1.1.2"} {
		slice.Endpoints = append(slice.Endpoints, discovery.Endpoint{Addresses: []string{address}})
	}
	c.create(t, slice)
	well := "All is well: MeshVirt " + plan.Release + ", 1 virtual machine (1 rules) in namespace vms.\n"
	if text := c.want(t); text != well {
		t.Errorf("%q, want %q", text, well)
	}
	if _, text := c.run(t, c.kubeconfig, "-A"); !strings.HasSuffix(text, "(1 rules) in all namespaces.\n") {
		t.Errorf("-A: %s", text)
	}

	refusal := func(err error) string {
		b, _ := json.Marshal("failed to create virtual machine pod: " + err.Error())
		return `{"status":{"conditions":[{"type":"Synchronized","status":"False","reason":"FailedCreate","message":` + string(b) + `}]}}`
	}
	configuration, deployment, late := ours(), &appsv1.Deployment{ObjectMeta: inWebhookNamespace(serviceName)}, &corev1.Pod{}
	c.get(t, configuration)
	bundle, err := json.Marshal(configuration.Webhooks[0].ClientConfig.CABundle)
	if err != nil {
		t.Fatal(err)
	}
	setBundle := func(value string) { c.patchWebhook(t, "add", "clientConfig/caBundle", value) }
	rename := func(to string) {
		other := configuration.DeepCopy()
		other.Name = to
		c.create(t, other)
	}
	named := func(name string) client.Object {
		return &admissionregistration.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: name}}
	}
	patches := func(object client.Object, with, back string) [2]func() {
		return [2]func(){func() { c.patch(t, object, with) }, func() { c.patch(t, object, back) }}
	}
	vm, vmi := virtualObject("VirtualMachine", "web"), virtualObject("VirtualMachineInstance", "web")
	for _, fault := range []struct {
		name   string
		change [2]func() // put it in, take it out
		want   []check.Code
	}{
		{"uninstalled", [2]func(){func() { c.remove(t, ours()) }, func() { rename(configurationName) }}, []check.Code{check.NotInstalled}},
		{"renamed", [2]func(){
			func() { rename("a-webhook"); c.remove(t, ours()) },
			func() { rename(configurationName); c.remove(t, named("a-webhook")) },
		}, []check.Code{check.OnlyReinvoked}},
		{"twice", [2]func(){func() { rename("other") }, func() { c.remove(t, named("other")) }}, []check.Code{check.InstalledTwice}},
		{"no CA", [2]func(){func() { setBundle(`""`) }, func() { setBundle(string(bundle)) }}, []check.Code{check.CABundleMissing}},
		{"no Service", [2]func(){
			func() { c.get(t, service); c.remove(t, service.DeepCopy()) },
			func() { service.Spec.ClusterIP, service.Spec.ClusterIPs = "", nil; c.create(t, service) },
		}, []check.Code{check.ServiceMissing}},
		{"no endpoints", [2]func(){func() { c.remove(t, slice) }, func() { c.create(t, slice) }}, []check.Code{check.NoEndpoints}},
		{"more replicas wanted", patches(deployment, `{"spec":{"replicas":3}}`, `{"spec":{"replicas":2}}`), []check.Code{check.FewEndpoints}},
		{"another release", patches(deployment, `{"spec":{"template":{"metadata":{"labels":{"app.kubernetes.io/version":"9.9.9"}}}}}`,
			`{"spec":{"template":{"metadata":{"labels":{"app.kubernetes.io/version":"`+plan.Release+`"}}}}}`), []check.Code{check.PluginRelease, check.OtherRelease}},
		{"a namespace that refuses", [2]func(){func() { enforce(`"restricted"`) }, func() { enforce(`null`) }}, []check.Code{check.PodSecurity}},
		{"a bad annotation", patches(vm, `{"spec":{"template":{"metadata":{"annotations":{"meshvirt.io/mode":"nat"}}}}}`,
			`{"spec":{"template":{"metadata":{"annotations":{"meshvirt.io/mode":null}}}}}`), []check.Code{check.InvalidAnnotation}},
		{"an annotation at the wrong place", patches(vm, `{"metadata":{"annotations":{"meshvirt.io/mode":"off"}}}`,
			`{"metadata":{"annotations":{"meshvirt.io/mode":null}}}`), []check.Code{check.NoEffect}},
		{"a pod refused for its capability", patches(vmi, refusal(refused), `{"status":null}`), []check.Code{check.Refused}},
		{"a pod refused without the webhook", patches(vmi, refusal(unanswered), `{"status":null}`), []check.Code{check.Refused}},
		{"a pod past the webhook", [2]func(){
			func() {
				c.patchWebhook(t, "replace", "failurePolicy", `"Ignore"`)
				c.await(t, "a pod is admitted without the webhook", func() bool {
					got, err := c.Admit(ctx, factsNamespace, next)
					if err == nil {
						late = got
					}
					return err == nil
				})
			},
			func() { c.remove(t, late) },
		}, []check.Code{check.NotAdapted}},
		{"a container that fails", [2]func(){func() {
			pod.Status.InitContainerStatuses = []corev1.ContainerStatus{{
				Name: templates.RulesName, State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ImagePullBackOff", Message: "no such image"}},
			}}
			if err := c.Client.Status().Update(ctx, pod); err != nil {
				t.Fatal(err)
			}
		}, func() {
			pod.Status.InitContainerStatuses = nil
			if err := c.Client.Status().Update(ctx, pod); err != nil {
				t.Fatal(err)
			}
		}}, []check.Code{check.ContainerFailed}},
	} {
		t.Run(fault.name, func(t *testing.T) {
			fault.change[0]()
			t.Log(c.want(t, fault.want...))
			fault.change[1]()
			c.want(t)
		})
	}
	t.Run("rights", func(t *testing.T) { c.rights(t) })
	out, err := exec.Command(c.program, "__completeNoDesc", "check", "--kubeconfig="+c.kubeconfig, "-n", "").Output()
	if err != nil || !strings.Contains(string(out), "\n"+factsNamespace+"\n") {
		t.Errorf("completion of -n: %q, error %v", out, err)
	}
}

// patchWebhook changes a field of our webhook.
func (c *checked) patchWebhook(t *testing.T, op, field, value string) {
	t.Helper()
	patch := fmt.Sprintf(`[{"op":%q,"path":"/webhooks/0/%s","value":%s}]`, op, field, value)
	if err := c.Client.Patch(t.Context(), ours(), client.RawPatch(types.JSONPatchType, []byte(patch))); err != nil {
		t.Fatal(err)
	}
}

// rights checks as users without rights, with the documented ones in a namespace, and everywhere.
func (c *checked) rights(t *testing.T) {
	root, err := tools.Root()
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile(filepath.Join(root, "docs/check.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(page), "```yaml\n")
	text, _, _ = strings.Cut(text, "```")
	role := &rbac.ClusterRole{}
	if err := yaml.UnmarshalStrict([]byte(text), role); err != nil {
		t.Fatal(err)
	}
	c.create(t, role)
	kubeconfig, err := c.Kubeconfig("somebody")
	if err != nil {
		t.Fatal(err)
	}
	ref := rbac.RoleRef{APIGroup: rbac.GroupName, Kind: "ClusterRole", Name: role.Name}
	subjects := []rbac.Subject{{APIGroup: rbac.GroupName, Kind: rbac.UserKind, Name: "somebody"}}
	for _, rights := range []struct {
		binding client.Object
		blind   int // how many resources cannot be read
	}{
		{nil, 5},
		{&rbac.RoleBinding{ObjectMeta: metav1.ObjectMeta{Namespace: factsNamespace, Name: "check"}, RoleRef: ref, Subjects: subjects}, 1},
		{&rbac.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "check"}, RoleRef: ref, Subjects: subjects}, 0},
	} {
		if rights.binding != nil {
			c.create(t, rights.binding)
		}
		var want []check.Code
		for range rights.blind {
			want = append(want, check.CannotTell)
		}
		// Authorization learns of a binding a moment after it is stored.
		c.await(t, "the user's rights", func() bool {
			got, text := c.run(t, kubeconfig, "-n", factsNamespace)
			if rights.blind > 0 && !strings.Contains(text, "forbidden") {
				t.Errorf("%d resources cannot be read, and the text says\n%s", rights.blind, text)
			}
			return cmp.Equal(want, got)
		})
	}
	// The documented rights are for reading.
	if got, text := c.run(t, kubeconfig, "-n", factsNamespace, "--try"); !cmp.Equal(got, []check.Code{check.CannotTell}) || !strings.Contains(text, "cannot create resource") {
		t.Errorf("--try: %s", text)
	}
}

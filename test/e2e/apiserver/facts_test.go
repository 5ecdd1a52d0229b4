package apiserver

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/meshvirt/meshvirt/pkg/annotations"
	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/templates"
	"github.com/meshvirt/meshvirt/tools"
)

// vmiCRD is the least that makes an API server serve VMIs.
const vmiCRD = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: virtualmachineinstances.kubevirt.io}
spec:
  group: kubevirt.io
  scope: Namespaced
  names: {kind: VirtualMachineInstance, listKind: VirtualMachineInstanceList, plural: virtualmachineinstances, singular: virtualmachineinstance, shortNames: [vmi]}
  versions:
  - name: v1
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
`

// factsCluster is a cluster with the chart installed and the webhook running with its rights.
type factsCluster struct {
	*Cluster
	istio   *Injector
	webhook *replica
}

const factsNamespace = "vms"

func startFacts(t *testing.T) *factsCluster {
	t.Helper()
	if err := tools.Uses("certs", "test/corpus"); err != nil {
		t.Fatal(err)
	}
	if err := uses(); err != nil {
		t.Fatal(err)
	}
	c, err := Start(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	})
	f := &factsCluster{Cluster: c}
	if f.istio, err = c.StartInjector(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.namespace(t, factsNamespace, nil)
	if err := c.Namespace(t.Context(), WebhookNamespace, nil); err != nil {
		t.Fatal(err)
	}
	service := &frontEnd{}
	t.Cleanup(service.close)
	args := install(t, c, service)
	f.webhook = startReplica(t, c, serviceAccountConfig(t, c), args)
	service.use(f.webhook)
	f.webhook.awaitReady(t)
	if err := c.awaitReview(t.Context(), WebhookName, factsNamespace, vmWeb(t).Pod); err != nil {
		t.Fatal(err)
	}
	return f
}

// namespace makes a namespace that is injected.
func (f *factsCluster) namespace(t *testing.T, name string, labels map[string]string) {
	t.Helper()
	all := map[string]string{"istio-injection": "enabled"}
	for k, v := range labels {
		all[k] = v
	}
	if err := f.Namespace(t.Context(), name, all); err != nil {
		t.Fatal(err)
	}
}

// corpusVM reads a VM of the corpus: its VMI and what Istio made of its pod.
func corpusVM(t *testing.T, name string) (*unstructured.Unstructured, *Recording) {
	t.Helper()
	root, err := tools.Root()
	if err != nil {
		t.Fatal(err)
	}
	read := func(file string, into any) {
		b, err := os.ReadFile(filepath.Join(root, "test/corpus/pods/v1.9.0", name, file))
		if err == nil {
			err = yaml.Unmarshal(b, into)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	vmi := &unstructured.Unstructured{}
	pod, injected := &corev1.Pod{}, &corev1.Pod{}
	read("vmi.yaml", &vmi.Object)
	read("pod.yaml", pod)
	read("injected-1.31.0-rc.0-native.yaml", injected)
	r, err := newRecording(pod, injected)
	if err != nil {
		t.Fatal(err)
	}
	return vmi, r
}

// vm makes the VMI of a VM of the corpus under a name of the test's, and gives the pod that
// virt-controller would create for it. A VMI that is not to be made is only named.
func (f *factsCluster) vm(t *testing.T, namespace, corpus, name string, made bool, edit func(vmi *unstructured.Unstructured)) *corev1.Pod {
	t.Helper()
	vmi, recording := corpusVM(t, corpus)
	f.istio.Use(namespace, recording)
	vmi.SetNamespace(namespace)
	vmi.SetName(name)
	vmi.SetFinalizers(nil)
	vmi.SetUID("916411a0-cfc8-42c7-9e06-000000000000")
	if edit != nil {
		edit(vmi)
	}
	if made {
		if err := f.Client.Create(t.Context(), vmi); err != nil {
			t.Fatal(err)
		}
	}
	pod := recording.Pod.DeepCopy()
	pod.GenerateName = "virt-launcher-" + name + "-"
	pod.OwnerReferences[0].Name, pod.OwnerReferences[0].UID = name, vmi.GetUID()
	return pod
}

// admit gives the admitted pod and the warnings to its creator.
func (f *factsCluster) admit(t *testing.T, namespace string, pod *corev1.Pod, options ...client.CreateOption) (*corev1.Pod, string) {
	t.Helper()
	f.Warnings()
	got, err := f.Admit(t.Context(), namespace, pod, options...)
	if err != nil {
		t.Fatal(err)
	}
	if !adapted(got) {
		t.Errorf("the pod is not adapted: init containers %v", names(got.Spec.InitContainers))
	}
	return got, strings.Join(f.Warnings(), "\n")
}

// planOf reads the plan that the injected container was given.
func planOf(t *testing.T, pod *corev1.Pod) plan.Plan {
	t.Helper()
	i := slices.IndexFunc(pod.Spec.InitContainers, func(c corev1.Container) bool { return c.Name == templates.RulesName })
	if i < 0 {
		t.Fatalf("no %s in %v", templates.RulesName, names(pod.Spec.InitContainers))
	}
	p, err := plan.Decode(pod.Spec.InitContainers[i].Env[0].Value)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// events gives those that `kubectl describe` shows of the pod's VMI, by reason.
func (f *factsCluster) events(t *testing.T, pod *corev1.Pod, namespace string) map[string][]corev1.Event {
	t.Helper()
	owner := pod.OwnerReferences[0]
	var list corev1.EventList
	fields := client.MatchingFields{"involvedObject.uid": string(owner.UID), "involvedObject.name": owner.Name, "involvedObject.kind": owner.Kind}
	if err := f.Client.List(t.Context(), &list, client.InNamespace(namespace), fields); err != nil {
		t.Fatal(err)
	}
	all := map[string][]corev1.Event{}
	for _, e := range list.Items {
		all[e.Reason] = append(all[e.Reason], e)
	}
	return all
}

// awaitEvents waits for the first event about the pod's VMI, and gives all about it.
func (f *factsCluster) awaitEvents(t *testing.T, pod *corev1.Pod, namespace string) map[string][]corev1.Event {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(poll) {
		if all := f.events(t, pod, namespace); len(all) > 0 {
			return all
		}
		if time.Now().After(deadline) {
			t.Fatalf("no event about %s after %s", pod.OwnerReferences[0].Name, patience)
		}
	}
}

// looked gives how often VMIs came from the source.
func (f *factsCluster) looked(t *testing.T, source string) int {
	t.Helper()
	text, err := get(t.Context(), "http://"+f.webhook.metrics+"/metrics")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(text) {
		if v, ok := strings.CutPrefix(line, fmt.Sprintf("meshvirt_facts_total{source=%q} ", source)); ok {
			n, err := strconv.Atoi(strings.TrimSpace(v))
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("no source %q in\n%s", source, text)
	return 0
}

//	pod ──► API server ──► webhook, with the rights of the chart's ServiceAccount
//	          ▲   ▲  VMI from the watch, or a GET  │
//	          │   └────────────────────────────────┤
//	          └──────── events on the VMI ─────────┘
//
// The webhook starts in a cluster without KubeVirt, whose API comes later.
func TestFacts(t *testing.T) {
	ctx := t.Context()
	f := startFacts(t)
	const custom = "masquerade-dualstack-cidrs"
	alone := func(t *testing.T, pod *corev1.Pod, warnings, why string) {
		t.Helper()
		if want := "the VirtualMachineInstance is not known (" + why; !strings.Contains(warnings, want) || !strings.Contains(warnings, "): decided by the pod alone") {
			t.Errorf("warnings %q, want %q", warnings, want)
		}
		if ip := planOf(t, pod).Guest.IPv4.String(); ip != "10.0.2.2" || !strings.Contains(pod.Annotations[annotations.Status], `"facts":"pod"`) {
			t.Errorf("guest %s, status %s; want KubeVirt's default and the pod alone", ip, pod.Annotations[annotations.Status])
		}
	}

	t.Run("no KubeVirt", func(t *testing.T) {
		pod, warnings := f.admit(t, factsNamespace, f.vm(t, factsNamespace, custom, "early", false, nil))
		alone(t, pod, warnings, "the API server does not know virtualmachineinstances.kubevirt.io")
	})
	crd := &unstructured.Unstructured{}
	if err := yaml.Unmarshal([]byte(vmiCRD), &crd.Object); err != nil {
		t.Fatal(err)
	}
	if err := f.Client.Create(ctx, crd); err != nil {
		t.Fatal(err)
	}
	f.awaitVMIs(t)

	t.Run("known", func(t *testing.T) {
		in := f.vm(t, factsNamespace, custom, "known", true, func(vmi *unstructured.Unstructured) {
			interfaces, _, err := unstructured.NestedSlice(vmi.Object, "spec", "domain", "devices", "interfaces")
			if err != nil || len(interfaces) != 1 {
				t.Fatalf("%d interfaces (%v), want 1", len(interfaces), err)
			}
			interfaces[0].(map[string]any)["portRanges"] = []any{map[string]any{"protocol": "TCP", "start": int64(8000), "end": int64(8999)}}
			if err := unstructured.SetNestedSlice(vmi.Object, interfaces, "spec", "domain", "devices", "interfaces"); err != nil {
				t.Fatal(err)
			}
		})
		marker := f.vm(t, factsNamespace, custom, "marker-1", true, nil)
		before, err := f.Reviews(ctx, WebhookName)
		if err != nil {
			t.Fatal(err)
		}
		pod, warnings := f.admit(t, factsNamespace, in)
		after, err := f.Reviews(ctx, WebhookName)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(warnings, "VirtualMachineInstance") {
			t.Errorf("warnings %q", warnings)
		}
		p := planOf(t, pod)
		if p.Guest.IPv4.String() != "10.11.12.2" || !slices.Contains(p.Guest.TCP, plan.PortRange{First: 8000, Last: 8999}) {
			t.Errorf("guest %+v, want 10.11.12.2 and ports 8000-8999 as the VMI says", p.Guest)
		}
		if !strings.Contains(pod.Annotations[annotations.Status], `"facts":"vmi"`) {
			t.Errorf("status %s", pod.Annotations[annotations.Status])
		}
		// The token that the API server mounts makes it ask twice; users see one event.
		if n := after - before; n < 2 {
			t.Errorf("%d reviews, want at least 2", n)
		}
		// Events are written in order: when one of a later pod is there, no more of this one are to come.
		f.admit(t, factsNamespace, marker)
		f.awaitEvents(t, marker, factsNamespace)
		events := f.events(t, in, factsNamespace)
		if len(events) != 1 || len(events["MeshJoined"]) != 1 {
			t.Fatalf("events %+v, want one MeshJoined", events)
		}
		e := events["MeshJoined"][0]
		if e.Count != 1 || e.Type != corev1.EventTypeNormal || !strings.HasPrefix(e.Message, "mode rules: A VM with masquerade binding") || e.Source.Component != "meshvirt-webhook" {
			t.Errorf("event %+v", e)
		}
	})

	t.Run("from the watch", func(t *testing.T) {
		in := f.vm(t, factsNamespace, custom, "watched", true, nil)
		// The watch takes up to half a minute to find an API that was not there.
		f.await(t, "the VMI comes from the watch", func() bool {
			f.admit(t, factsNamespace, in, client.DryRunAll)
			return f.looked(t, "cache") > 0
		})
		asked := f.looked(t, "get")
		pod, _ := f.admit(t, factsNamespace, in, client.DryRunAll)
		if ip := planOf(t, pod).Guest.IPv4.String(); ip != "10.11.12.2" || f.looked(t, "get") != asked {
			t.Errorf("guest %s after %d questions more; want 10.11.12.2 without any", ip, f.looked(t, "get")-asked)
		}
		// Events are written in order: when one about a later pod is there, those of the dry runs are not to come.
		marker := f.vm(t, factsNamespace, custom, "marker-2", true, nil)
		f.admit(t, factsNamespace, marker)
		f.awaitEvents(t, marker, factsNamespace)
		if events := f.events(t, in, factsNamespace); len(events) > 0 {
			t.Errorf("events %+v of dry runs, want none", events)
		}
	})

	t.Run("missing", func(t *testing.T) {
		pod, warnings := f.admit(t, factsNamespace, f.vm(t, factsNamespace, custom, "missing", false, nil))
		alone(t, pod, warnings, "there is no vms/missing")
		in := f.vm(t, factsNamespace, custom, "replaced", true, nil)
		in.OwnerReferences[0].UID = "916411a0-cfc8-42c7-9e06-111111111111"
		pod, warnings = f.admit(t, factsNamespace, in)
		alone(t, pod, warnings, "vms/replaced has uid ")
	})

	t.Run("left alone", func(t *testing.T) {
		in := f.vm(t, factsNamespace, "bridge-istio", "bridge", true, nil)
		if pod, err := f.Admit(ctx, factsNamespace, in); err != nil || adapted(pod) {
			t.Fatalf("error %v, adapted %t", err, adapted(pod))
		}
		events := f.awaitEvents(t, in, factsNamespace)
		if e := events["MeshSkipped"]; len(e) != 1 || !strings.HasPrefix(e[0].Message, "BindingUnsupported: ") {
			t.Errorf("events %+v, want one MeshSkipped", events)
		}
	})

	t.Run("refused", func(t *testing.T) {
		in := f.vm(t, factsNamespace, custom, "refused", true, nil)
		in.Annotations[annotations.Mode] = "teleport"
		for range 2 { // virt-controller tries again
			if _, err := f.Admit(ctx, factsNamespace, in); err == nil {
				t.Fatal("the pod is admitted, want a denial")
			}
		}
		events := f.awaitEvents(t, in, factsNamespace)
		if e := events["MeshRefused"]; len(e) != 1 || e[0].Type != corev1.EventTypeWarning || !strings.Contains(e[0].Message, `metadata.annotations[meshvirt.io/mode]: Invalid value: "teleport"`) {
			t.Errorf("events %+v, want one MeshRefused that names the annotation", events)
		}
	})

	t.Run("Pod Security", func(t *testing.T) {
		const strict = "strict"
		f.namespace(t, strict, map[string]string{"pod-security.kubernetes.io/enforce": "baseline"})
		in := f.vm(t, strict, custom, "strict", true, nil)
		want := "namespace strict enforces Pod Security level baseline, which refuses capability NET_ADMIN of init container meshvirt-rules"
		f.await(t, want, func() bool {
			f.Warnings()
			_, err := f.Admit(ctx, strict, in, client.DryRunAll)
			if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), `violates PodSecurity "baseline`) {
				t.Fatalf("error %v, want that of Pod Security", err)
			}
			return strings.Contains(strings.Join(f.Warnings(), "\n"), want)
		})
	})

	t.Run("rights", func(t *testing.T) {
		config, err := clientcmd.BuildConfigFromFlags("", serviceAccountConfig(t, f.Cluster))
		if err != nil {
			t.Fatal(err)
		}
		account, err := client.New(config, client.Options{})
		if err != nil {
			t.Fatal(err)
		}
		vmis := &unstructured.UnstructuredList{}
		vmis.SetAPIVersion("kubevirt.io/v1")
		vmis.SetKind("VirtualMachineInstanceList")
		if err := account.List(ctx, vmis); err != nil || len(vmis.Items) == 0 {
			t.Errorf("list VMIs: %d, %v", len(vmis.Items), err)
		}
		for what, err := range map[string]error{
			"delete a VMI":       account.Delete(ctx, &vmis.Items[0]),
			"list pods":          account.List(ctx, &corev1.PodList{}),
			"list secrets":       account.List(ctx, &corev1.SecretList{}),
			"list events":        account.List(ctx, &corev1.EventList{}),
			"delete a namespace": account.Delete(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: factsNamespace}}),
		} {
			if !apierrors.IsForbidden(err) {
				t.Errorf("%s: error %v, want that it is forbidden", what, err)
			}
		}
	})
}

// await calls check until it is true.
func (f *factsCluster) await(t *testing.T, what string, check func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !check(); time.Sleep(poll) {
		if time.Now().After(deadline) {
			t.Fatalf("not after %s: %s", patience, what)
		}
	}
}

// awaitVMIs waits until the API server serves VMIs.
func (f *factsCluster) awaitVMIs(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	f.await(t, "VMIs are served", func() bool {
		// By path: a client that asks what there is would remember that there was none.
		return f.rest.Get().AbsPath("/apis/kubevirt.io/v1/virtualmachineinstances").Do(ctx).Error() == nil
	})
}

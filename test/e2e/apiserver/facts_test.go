package apiserver

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvirt/meshvirt/pkg/annotations"
	"github.com/meshvirt/meshvirt/pkg/plan"
)

// custom is a VM whose guest has addresses of its own, which only the VMI tells.
const custom = "masquerade-dualstack-cidrs"

//	pod ──► API server ──► webhook, with the rights of the chart's ServiceAccount
//	          ▲   ▲  VMI from the watch, or a GET  │
//	          │   └────────────────────────────────┤
//	          └──────── events on the VMI ─────────┘
//
// The webhook starts in a cluster without KubeVirt, whose API comes later.
func TestFacts(t *testing.T) {
	ctx := t.Context()
	f := startFacts(t, Start, newestCorpus)
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
	f.serveVMIs(t)
	f.awaitQuestions(t)

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
		if e.Count != 1 || e.Type != corev1.EventTypeNormal || !strings.HasPrefix(e.Message, "Joined istio in mode rules (MasqueradeSidecar). A VM with masquerade binding") || e.Source.Component != "meshvirt-webhook" {
			t.Errorf("event %+v", e)
		}
	})

	t.Run("generateName", f.testGenerateName)

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
		if e := events["MeshSkipped"]; len(e) != 1 || !strings.HasPrefix(e[0].Message, "Left as istio made it (BindingUnsupported). ") {
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

package apiserver

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvirt/meshvirt/pkg/annotations"
	"github.com/meshvirt/meshvirt/pkg/templates"
)

// Every recorded pod comes back with Istio's containers and, right behind the one that sets up or
// checks the redirection, ours: MeshVirt was called after Istio. Nothing else differs from what
// admission makes of the pod without MeshVirt, but Istio's settings for the guest's interface.
func TestAdaptsWhatIstioInjected(t *testing.T) { each(t, testAdaptsWhatIstioInjected) }

func testAdaptsWhatIstioInjected(t *testing.T, s *site) {
	s.recordings(t, func(t *testing.T, r *Recording) {
		ctx := t.Context()
		with, without := s.namespace(t, r), s.namespace(t, r, "meshvirt.io/inject=disabled")
		plain, err := s.Admit(ctx, without, r.Pod)
		if err != nil {
			t.Fatal(err)
		}
		if adapted(plain) {
			t.Fatalf("the pod was adapted in a namespace that opted out: %v", names(plain.Spec.InitContainers))
		}
		if _, err := s.Admit(ctx, with, r.Pod); err != nil {
			t.Fatal(err)
		}
		// Read back rather than taken from the answer: what is stored is what a kubelet would run.
		var stored corev1.PodList
		if err := s.Client.List(ctx, &stored, client.InNamespace(with)); err != nil || len(stored.Items) != 1 {
			t.Fatalf("%d pods are stored (%v), want 1", len(stored.Items), err)
		}
		pod := &stored.Items[0]
		if !strings.HasPrefix(pod.Name, r.Pod.GenerateName) {
			t.Errorf("the pod is called %s, want a name that starts with %s", pod.Name, r.Pod.GenerateName)
		}
		if pod.Annotations[annotations.Status] == "" {
			t.Errorf("no annotation %s in %v", annotations.Status, pod.Annotations)
		}
		inits := names(pod.Spec.InitContainers)
		mesh := slices.IndexFunc(inits, func(n string) bool { return n == "istio-init" || n == "istio-validation" })
		if mesh < 0 || mesh+1 >= len(inits) || inits[mesh+1] != templates.RulesName {
			t.Errorf("init containers are %v, want %s right behind istio-init or istio-validation", inits, templates.RulesName)
		}

		pod.Spec.InitContainers = slices.DeleteFunc(pod.Spec.InitContainers, func(c corev1.Container) bool { return isOurs(c.Name) })
		pod.Spec.Volumes = slices.DeleteFunc(pod.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == templates.NoTokenName })
		for _, key := range annotations.Own {
			delete(pod.Annotations, key)
		}
		for _, p := range []*corev1.Pod{plain, pod} {
			for i := range p.Spec.InitContainers {
				if c := &p.Spec.InitContainers[i]; c.Name == inits[max(mesh, 0)] {
					c.Args = nil
				}
			}
			for _, key := range []string{"istio.io/reroute-virtual-interfaces", "traffic.sidecar.istio.io/kubevirtInterfaces", "traffic.sidecar.istio.io/excludeInterfaces"} {
				delete(p.Annotations, key)
			}
		}
		if diff := cmp.Diff(plain, pod, samePod); diff != "" {
			t.Errorf("MeshVirt changed more than it says (-without +with)\n%s", diff)
		}
	})
}

// One call is enough, because ours comes after Istio's: were it the other way round, what Istio adds
// would cost a second one. (So does a token that the API server mounts into Istio's containers after
// both; this pod wants none.)
func TestIsCalledAfterIstio(t *testing.T) { each(t, testIsCalledAfterIstio) }

func testIsCalledAfterIstio(t *testing.T, s *site) {
	r := s.vmWeb(t)
	here := s.namespace(t, r)
	pod := r.Pod.DeepCopy()
	pod.Spec.AutomountServiceAccountToken = new(bool)
	before := s.reviews(t)
	got, err := s.Admit(t.Context(), here, pod)
	if err != nil {
		t.Fatal(err)
	}
	if n := s.reviews(t) - before; n != 1 || !adapted(got) {
		t.Errorf("%d reviews (want 1), adapted: %v (want true)", n, adapted(got))
	}
}

// Pods of no concern never reach the webhook, and so do not depend on it.
func TestOtherPodsStayAway(t *testing.T) { each(t, testOtherPodsStayAway) }

func testOtherPodsStayAway(t *testing.T, s *site) {
	ctx := t.Context()
	vm := s.vmWeb(t)
	edited := func(edit func(*corev1.Pod)) *corev1.Pod {
		pod := vm.Pod.DeepCopy()
		edit(pod)
		return pod
	}
	here := s.namespace(t, vm)
	out := s.namespace(t, vm, "meshvirt.io/inject=disabled")
	for _, name := range []string{WebhookNamespace, metav1.NamespaceSystem} {
		if err := s.Namespace(ctx, name, nil); err != nil {
			t.Fatal(err)
		}
	}
	cases := map[string]struct {
		namespace string
		pod       *corev1.Pod
	}{
		"no labels":                        {here, probePod(nil)},
		"other labels":                     {here, probePod(map[string]string{"app": "web"})},
		"KubeVirt's other pods":            {here, probePod(map[string]string{"kubevirt.io": "hotplug-disk"})},
		"VM with the label false":          {here, edited(func(p *corev1.Pod) { p.Labels["meshvirt.io/inject"] = "false" })},
		"VM with the annotation false":     {here, edited(func(p *corev1.Pod) { p.Annotations["meshvirt.io/inject"] = "false" })},
		"VM in a namespace that opted out": {out, vm.Pod},
		"VM in kube-system":                {metav1.NamespaceSystem, vm.Pod},
		"VM in the webhook's namespace":    {WebhookNamespace, vm.Pod},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			before := s.reviews(t)
			pod, err := s.Admit(ctx, c.namespace, c.pod)
			if err != nil {
				t.Fatal(err)
			}
			if n := s.reviews(t) - before; n != 0 || adapted(pod) {
				t.Errorf("%d reviews (want none), adapted: %v (want false)", n, adapted(pod))
			}
		})
	}
	// The check can fail: pods that are of concern do reach it.
	for name, pod := range map[string]*corev1.Pod{
		"VM":                            vm.Pod,
		"pod with the label true":       probePod(map[string]string{"meshvirt.io/inject": "true"}),
		"VM without any annotation":     edited(func(p *corev1.Pod) { p.Annotations = nil }),
		"VM with an unknown label here": edited(func(p *corev1.Pod) { p.Labels["meshvirt.io/inject"] = "yes" }),
	} {
		t.Run(name, func(t *testing.T) {
			before := s.reviews(t)
			_, err := s.Admit(ctx, here, pod)
			if n := s.reviews(t) - before; n == 0 {
				t.Errorf("no review (admission error: %v), want one", err)
			}
		})
	}
}

// While the webhook is away, VMs are refused, since policy Fail is the chart's default; nothing else is.
func TestOutage(t *testing.T) { each(t, testOutage) }

func testOutage(t *testing.T, s *site) {
	ctx := t.Context()
	vm := s.vmWeb(t)
	here := s.namespace(t, vm)
	if err := s.webhook.StopProcess(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.webhook.Start(context.Background()); err != nil {
			t.Errorf("start the webhook again: %v", err)
		}
	})
	if _, err := s.Admit(ctx, here, probePod(map[string]string{"app": "web"})); err != nil {
		t.Errorf("a pod that is no VM: %v", err)
	}
	optedOut := vm.Pod.DeepCopy()
	optedOut.Annotations["meshvirt.io/inject"] = "false"
	if _, err := s.Admit(ctx, here, optedOut); err != nil {
		t.Errorf("a VM that opted out: %v", err)
	}
	_, err := s.Admit(ctx, here, vm.Pod)
	if want := `failed calling webhook "` + WebhookName + `"`; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("a VM: got error %v, want one with %q", err, want)
	}
}

func TestDeniesBadAnnotations(t *testing.T) { each(t, testDeniesBadAnnotations) }

func testDeniesBadAnnotations(t *testing.T, s *site) {
	r := s.vmWeb(t)
	here := s.namespace(t, r)
	pod := r.Pod.DeepCopy()
	bad := map[string]string{
		annotations.Mode:                 "teleport",
		annotations.ExcludeOutboundCIDRs: "10.0.0.0/33",
		annotations.ExcludeInboundPorts:  "ssh",
	}
	maps.Copy(pod.Annotations, bad)
	_, err := s.Admit(t.Context(), here, pod)
	var status apierrors.APIStatus
	if !errors.As(err, &status) {
		t.Fatalf("got error %v, want a denial", err)
	}
	if got := status.Status(); got.Code != http.StatusUnprocessableEntity {
		t.Errorf("the status is %d %s, want 422", got.Code, got.Reason)
	}
	for _, want := range append(slices.Collect(maps.Keys(bad)), `admission webhook "`+WebhookName+`" denied the request`) {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not have %q:\n%v", want, err)
		}
	}
}

func TestDryRun(t *testing.T) { each(t, testDryRun) }

func testDryRun(t *testing.T, s *site) {
	r := s.vmWeb(t)
	here := s.namespace(t, r)
	pod, err := s.Admit(t.Context(), here, r.Pod, client.DryRunAll)
	if err != nil {
		t.Fatal(err)
	}
	if !adapted(pod) {
		t.Errorf("the pod is not adapted: init containers %v, annotations %v", names(pod.Spec.InitContainers), pod.Annotations)
	}
	var stored corev1.PodList
	if err := s.Client.List(t.Context(), &stored, client.InNamespace(here)); err != nil || len(stored.Items) != 0 {
		t.Errorf("%d pods are stored (%v), want none", len(stored.Items), err)
	}
}

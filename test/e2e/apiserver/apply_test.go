package apiserver

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/meshvirt/meshvirt/pkg/annotations"
	"github.com/meshvirt/meshvirt/pkg/templates"
)

// A pod that is made by server-side apply is adapted as one that is created. Applying the same manifest again takes
// nothing of ours away and meets no conflict: the applier owns what is in its manifest, and none of what is ours.
func TestServerSideApply(t *testing.T) { each(t, testServerSideApply) }

func testServerSideApply(t *testing.T, s *site) {
	const applier = "gitops"
	r := s.vmWeb(t)
	created, err := s.Admit(t.Context(), s.namespace(t, r), r.Pod)
	if err != nil {
		t.Fatal(err)
	}
	here := s.namespace(t, r)
	manifest := r.Pod.DeepCopy()
	manifest.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}
	manifest.Namespace, manifest.Name, manifest.GenerateName = here, "virt-launcher-applied", ""
	body, err := json.Marshal(manifest)
	if err != nil {
		t.Fatal(err)
	}
	apply := func() *corev1.Pod {
		t.Helper()
		pod := &corev1.Pod{}
		err := s.rest.Patch(types.ApplyPatchType).AbsPath("/api/v1/namespaces", here, "pods", manifest.Name).
			Param("fieldManager", applier).Body(body).Do(t.Context()).Into(pod)
		if err != nil {
			t.Fatal(err)
		}
		pod.TypeMeta = metav1.TypeMeta{} // as in the answer to a creation
		return pod
	}

	first := apply()
	created.GenerateName = ""
	if diff := cmp.Diff(created, first, samePod); diff != "" {
		t.Errorf("an applied pod is not as a created one (-created +applied)\n%s", diff)
	}
	before := s.reviews(t)
	second := apply()
	if n := s.reviews(t) - before; n != 0 {
		t.Errorf("the second apply asked for %d reviews, want none: it creates nothing", n)
	}
	// What adaptation took out of the manifest's own annotations is the applier's to put back; the mesh read it at creation.
	back := 0
	for _, key := range []string{"istio.io/reroute-virtual-interfaces", "traffic.sidecar.istio.io/kubevirtInterfaces"} {
		v, theirs := manifest.Annotations[key]
		if _, was := first.Annotations[key]; theirs && !was && second.Annotations[key] == v {
			first.Annotations[key] = v
			back++
		}
	}
	if back == 0 {
		t.Error("the manifest asks Istio for nothing, want a VM whose interface is moved")
	}
	if diff := cmp.Diff(first, second, samePod); diff != "" {
		t.Errorf("the second apply changed the pod (-first +second)\n%s", diff)
	}
	if third := apply(); third.ResourceVersion != second.ResourceVersion {
		t.Errorf("the third apply changed the pod (-second +third)\n%s", cmp.Diff(second, third))
	}
	owned := ""
	for _, f := range second.ManagedFields {
		if f.Manager == applier {
			owned += f.FieldsV1.GetRawString()
		}
	}
	if !strings.Contains(owned, `k:{\"name\":\"compute\"}`) {
		t.Errorf("%s does not own the manifest's container: %s", applier, owned)
	}
	for _, ours := range []string{annotations.Status, annotations.Undo, templates.RulesName} {
		if strings.Contains(owned, ours) {
			t.Errorf("%s owns %s: %s", applier, ours, owned)
		}
	}
}

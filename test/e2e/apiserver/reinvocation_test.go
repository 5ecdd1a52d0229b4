package apiserver

import (
	"context"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// A webhook that comes later and changes the pod makes the API server call ours again. The second
// call must find nothing to do.
func TestReinvocation(t *testing.T) { each(t, testReinvocation) }

func testReinvocation(t *testing.T, s *site) {
	const label = "late"
	ctx := t.Context()
	late, err := s.StartHook(ctx, "zzz-late", "late.example.com", map[string]string{label: "yes"}, func(pod *corev1.Pod) (*corev1.Pod, error) {
		metav1.SetMetaDataAnnotation(&pod.ObjectMeta, label, "was here")
		// Another container shifts indices, as injectors do.
		pod.Spec.InitContainers = append([]corev1.Container{{Name: label, Image: label}}, pod.Spec.InitContainers...)
		return pod, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := late.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	s.recordings(t, func(t *testing.T, r *Recording) {
		here := s.namespace(t, r)
		once, err := s.Admit(ctx, here, r.Pod)
		if err != nil {
			t.Fatal(err)
		}
		there := s.namespace(t, r, label+"=yes")
		before := s.reviews(t)
		twice, err := s.Admit(ctx, there, r.Pod)
		if err != nil {
			t.Fatal(err)
		}
		if n := s.reviews(t) - before; n < 2 {
			t.Errorf("the webhook was called %d times, want at least 2", n)
		}
		if twice.Annotations[label] == "" || twice.Spec.InitContainers[0].Name != label {
			t.Fatalf("the late webhook left no mark: annotations %v, init containers %v", twice.Annotations, names(twice.Spec.InitContainers))
		}
		delete(twice.Annotations, label)
		twice.Spec.InitContainers = twice.Spec.InitContainers[1:]
		if diff := cmp.Diff(once, twice, samePod); diff != "" {
			t.Errorf("the second call changed the pod (-once +twice)\n%s", diff)
		}
	})
}

// An adapted pod that is created again, as backup and restore do, stays as it is.
func TestAdmitsItsOwnOutput(t *testing.T) { each(t, testAdmitsItsOwnOutput) }

func testAdmitsItsOwnOutput(t *testing.T, s *site) {
	ctx := t.Context()
	s.recordings(t, func(t *testing.T, r *Recording) {
		here := s.namespace(t, r)
		once, err := s.Admit(ctx, here, r.Pod)
		if err != nil {
			t.Fatal(err)
		}
		if !adapted(once) {
			t.Fatalf("the pod is not adapted: init containers %v", names(once.Spec.InitContainers))
		}
		again := s.namespace(t, nil)
		pod := once.DeepCopy()
		pod.ObjectMeta = metav1.ObjectMeta{
			GenerateName: once.GenerateName, Labels: once.Labels, Annotations: once.Annotations, OwnerReferences: once.OwnerReferences,
		}
		before := s.reviews(t)
		twice, err := s.Admit(ctx, again, pod)
		if err != nil {
			t.Fatal(err)
		}
		if n := s.reviews(t) - before; n != 1 {
			t.Errorf("the webhook was called %d times, want 1", n)
		}
		if diff := cmp.Diff(once, twice, samePod); diff != "" {
			t.Errorf("the pod changed (-once +twice)\n%s", diff)
		}
	})
}

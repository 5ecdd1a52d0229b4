package apiserver

import (
	"errors"
	"net/http"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/validation"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvirt/meshvirt/pkg/annotations"
)

// The API server counts the bytes of all annotations after admission. A pod that fills its own part is adapted
// as long as our status fits, without the record for uninject if need be; and its user never reads only that it is too long.
func TestAnnotationLimit(t *testing.T) { each(t, testAnnotationLimit) }

func testAnnotationLimit(t *testing.T, s *site) {
	const key = "example.com/notes"
	r := s.vmWeb(t)
	here := s.namespace(t, r)
	admit := func(bytes int) (*corev1.Pod, string, error) {
		pod := r.Pod.DeepCopy()
		pod.Annotations[key] = strings.Repeat("x", bytes)
		s.Warnings()
		pod, err := s.Admit(t.Context(), here, pod, client.DryRunAll)
		return pod, strings.Join(s.Warnings(), "\n"), err
	}
	size := func(annotations map[string]string) (n int) {
		for k, v := range annotations {
			n += len(k) + len(v)
		}
		return n
	}
	small, _, err := admit(0)
	if err != nil {
		t.Fatal(err)
	}
	room := validation.TotalAnnotationSizeLimitB - size(small.Annotations)
	undo := len(annotations.Undo) + len(small.Annotations[annotations.Undo])

	full, _, err := admit(room)
	if err != nil || full.Annotations[annotations.Undo] == "" {
		t.Errorf("filled to the last byte: error %v, want none and a record", err)
	}
	for _, bytes := range []int{room + 1, room + undo} {
		pod, warnings, err := admit(bytes)
		if err != nil {
			t.Fatalf("%d bytes: %v", bytes, err)
		}
		if !adapted(pod) || pod.Annotations[annotations.Status] == "" || pod.Annotations[annotations.Undo] != "" {
			t.Errorf("%d bytes: want it adapted, with a status and without a record: %v", bytes, names(pod.Spec.InitContainers))
		}
		if want := "annotation meshvirt.io/undo is left out"; !strings.Contains(warnings, want) {
			t.Errorf("%d bytes: warnings %q, want %q", bytes, warnings, want)
		}
	}
	_, _, err = admit(room + undo + 1)
	var status apierrors.APIStatus
	if !errors.As(err, &status) || status.Status().Code != http.StatusUnprocessableEntity {
		t.Fatalf("got error %v, want a denial with 422", err)
	}
	for _, want := range []string{WebhookName, "metadata.annotations: Too long: ", "with what MeshVirt sets (", annotations.Status, "want 1 bytes fewer"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not have %q:\n%v", want, err)
		}
	}
	// Too long by itself: the API server says so, in its own words.
	if _, _, err := admit(validation.TotalAnnotationSizeLimitB); err == nil || strings.Contains(err.Error(), "MeshVirt") {
		t.Errorf("got error %v, want the API server's own", err)
	}
}

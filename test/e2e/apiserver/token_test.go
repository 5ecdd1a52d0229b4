package apiserver

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/meshvirt/meshvirt/pkg/templates"
)

// The API server mounts the pod's token into every container but ours, and so has no reason to ask about the pod again.
func TestTokenIsWithheld(t *testing.T) { each(t, testTokenIsWithheld) }

func testTokenIsWithheld(t *testing.T, s *site) {
	s.recordings(t, func(t *testing.T, r *Recording) {
		pod, err := r.Inject(r.Pod)
		if err != nil {
			t.Fatal(err)
		}
		here := s.namespace(t, nil)
		before := s.reviews(t)
		got, err := s.Admit(t.Context(), here, pod)
		if err != nil {
			t.Fatal(err)
		}
		if n := s.reviews(t) - before; n != 1 {
			t.Errorf("the webhook was called %d times, want 1", n)
		}
		for _, c := range slices.Concat(got.Spec.InitContainers, got.Spec.Containers) {
			token := slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return strings.HasPrefix(m.Name, "kube-api-access-") })
			if ours := c.Name == templates.RulesName || c.Name == templates.ProxyName; token == ours {
				t.Errorf("container %s has the token: %t", c.Name, token)
			}
		}
	})
}

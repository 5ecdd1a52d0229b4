package templates

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

func list(cpu, memory string) corev1.ResourceList {
	l := corev1.ResourceList{}
	for name, q := range map[corev1.ResourceName]string{corev1.ResourceCPU: cpu, corev1.ResourceMemory: memory} {
		if q != "" {
			l[name] = resource.MustParse(q)
		}
	}
	return l
}

func TestResources(t *testing.T) {
	type requirements = corev1.ResourceRequirements
	for name, c := range map[string]struct {
		own, want, wantGuaranteed requirements
	}{
		"default": {
			want:           requirements{Requests: list("10m", "64Mi"), Limits: list("", "64Mi")},
			wantGuaranteed: requirements{Requests: list("100m", "64Mi"), Limits: list("100m", "64Mi")},
		},
		"requests": {
			own:            requirements{Requests: list("50m", "")},
			want:           requirements{Requests: list("50m", "")},
			wantGuaranteed: requirements{Requests: list("50m", "64Mi"), Limits: list("50m", "64Mi")},
		},
		"both": {
			own:            requirements{Requests: list("50m", "32Mi"), Limits: list("2", "")},
			want:           requirements{Requests: list("50m", "32Mi"), Limits: list("2", "")},
			wantGuaranteed: requirements{Requests: list("2", "32Mi"), Limits: list("2", "32Mi")},
		},
	} {
		for guaranteed, want := range map[bool]requirements{false: c.want, true: c.wantGuaranteed} {
			got := resources(c.own, rulesDefaults, guaranteed)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s, guaranteed %v (-want +got)\n%s", name, guaranteed, diff)
			}
		}
	}
}

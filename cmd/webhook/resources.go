package main

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

// into gives a function that reads a flag's value into r, or says why the API server would refuse
// every pod with it.
func into(r *corev1.ResourceRequirements) func(string) error {
	return func(s string) error {
		var given struct{ Requests, Limits corev1.ResourceList }
		if err := yaml.UnmarshalStrict([]byte(s), &given); err != nil {
			return err
		}
		for field, list := range map[string]corev1.ResourceList{"requests": given.Requests, "limits": given.Limits} {
			for name, q := range list {
				if !slices.Contains([]corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage}, name) {
					return fmt.Errorf("%s has %s, want cpu, memory or ephemeral-storage", field, name)
				}
				if q.Sign() <= 0 {
					return fmt.Errorf("%s.%s is %s, want more than zero", field, name, q.String())
				}
			}
		}
		for name, q := range given.Requests {
			if limit, ok := given.Limits[name]; ok && q.Cmp(limit) > 0 {
				return fmt.Errorf("requests.%s is %s, want at most the limit, %s", name, q.String(), limit.String())
			}
		}
		*r = corev1.ResourceRequirements{Requests: given.Requests, Limits: given.Limits}
		return nil
	}
}

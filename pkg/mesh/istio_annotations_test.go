package mesh

import (
	"maps"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestAnnotationChanges(t *testing.T) {
	tests := []struct {
		name                         string
		before, excluded, andReroute map[string]string
	}{
		{
			"kubevirt since 1.7",
			map[string]string{AnnotationKubevirtInterfaces: "k6t-eth0", AnnotationRerouteInterfaces: "k6t-eth0", "x": "y"},
			map[string]string{AnnotationExcludeInterfaces: "k6t-eth0", "x": "y"},
			map[string]string{AnnotationKubevirtInterfaces: "k6t-eth0", AnnotationRerouteInterfaces: "k6t-eth0", "x": "y"},
		},
		{
			"kubevirt before 1.7",
			map[string]string{AnnotationKubevirtInterfaces: "k6t-eth0"},
			map[string]string{AnnotationExcludeInterfaces: "k6t-eth0"},
			map[string]string{AnnotationKubevirtInterfaces: "k6t-eth0", AnnotationRerouteInterfaces: "k6t-eth0"},
		},
		{
			"other interfaces",
			map[string]string{AnnotationRerouteInterfaces: "a, k6t-eth0 ,b", AnnotationExcludeInterfaces: "net1"},
			map[string]string{AnnotationRerouteInterfaces: "a,b", AnnotationExcludeInterfaces: "net1,k6t-eth0"},
			map[string]string{AnnotationKubevirtInterfaces: "k6t-eth0", AnnotationRerouteInterfaces: "a,b,k6t-eth0", AnnotationExcludeInterfaces: "net1"},
		},
		{
			"none, and an empty list",
			map[string]string{AnnotationKubevirtInterfaces: ""},
			map[string]string{AnnotationKubevirtInterfaces: "", AnnotationExcludeInterfaces: "k6t-eth0"},
			map[string]string{AnnotationKubevirtInterfaces: "k6t-eth0", AnnotationRerouteInterfaces: "k6t-eth0"},
		},
	}
	apply := func(m map[string]string, c AnnotationChange) map[string]string {
		m = maps.Clone(m)
		maps.Copy(m, c.Set)
		for _, key := range c.Remove {
			delete(m, key)
		}
		return m
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			original := maps.Clone(tt.before)
			excluded := apply(tt.before, ExcludeInterface(tt.before, "k6t-eth0"))
			if diff := cmp.Diff(tt.excluded, excluded); diff != "" {
				t.Errorf("excluded (-want +got):\n%s", diff)
			}
			again := ExcludeInterface(excluded, "k6t-eth0")
			if len(again.Set)+len(again.Remove) > 0 {
				t.Errorf("excluded again: %v, want no change", again)
			}
			rerouted := apply(excluded, RerouteInterface(excluded, "k6t-eth0"))
			if diff := cmp.Diff(tt.andReroute, rerouted); diff != "" {
				t.Errorf("and rerouted (-want +got):\n%s", diff)
			}
			again = RerouteInterface(rerouted, "k6t-eth0")
			if len(again.Set)+len(again.Remove) > 0 {
				t.Errorf("rerouted again: %v, want no change", again)
			}
			if diff := cmp.Diff(original, tt.before); diff != "" {
				t.Errorf("the input changed (-want +got):\n%s", diff)
			}
		})
	}
}

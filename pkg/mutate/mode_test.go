package mutate

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/meshvirt/meshvirt/pkg/annotations"
	"github.com/meshvirt/meshvirt/pkg/decision"
	"github.com/meshvirt/meshvirt/pkg/kubevirt"
	"github.com/meshvirt/meshvirt/pkg/mesh"
	"github.com/meshvirt/meshvirt/pkg/plan"
)

// Before Kubernetes 1.29 the mesh's own sidecar may be native, where the feature gate is set; then ours may be too.
func TestNativeSidecarOfTheMesh(t *testing.T) {
	for name, c := range map[string]struct {
		sidecar *corev1.ContainerRestartPolicy
		want    decision.Reason
	}{
		"none":   {nil, decision.Invalid},
		"native": {new(corev1.ContainerRestartPolicyAlways), decision.Requested},
	} {
		pod := recorded(t)
		pod.Annotations[annotations.Mode] = string(plan.NATProxy)
		pod.Spec.InitContainers = slices.DeleteFunc(pod.Spec.InitContainers, func(c corev1.Container) bool { return c.RestartPolicy != nil })
		pod.Spec.InitContainers = append(pod.Spec.InitContainers, corev1.Container{Name: "istio-proxy", RestartPolicy: c.sidecar})
		if _, report, errs := Apply(pod, Facts{NoNativeSidecars: true}, testConfig); report.Reason != c.want || (len(errs) > 0) != (c.want == decision.Invalid) {
			t.Errorf("%s: reason %s, errors %v; want %s", name, report.Reason, errs, c.want)
		}
	}
}

// What an earlier admission wrote into the pod decides again where nothing else is known: the mesh's settings no longer tell of the interface,
// and no VMI of the binding.
func TestAdmittedAgain(t *testing.T) {
	for name, c := range map[string]struct {
		facts Facts
		want  decision.Reason
	}{
		"an interface was found": {Facts{}, decision.MasqueradeSidecar},
		"it was a process":       {Facts{VMI: &kubevirt.VMI{Binding: kubevirt.BindingPasst}}, decision.ProcessBinding},
	} {
		once, report, errs := Apply(recorded(t), c.facts, testConfig)
		if len(errs) > 0 || report.Reason != c.want {
			t.Fatalf("%s: reason %s, errors %v; want %s", name, report.Reason, errs, c.want)
		}
		for _, by := range []string{factsVMI, factsPod} {
			pod := once.DeepCopy()
			pod.Annotations[annotations.Status] = strings.NewReplacer(`"facts":"vmi"`, `"facts":"`+by+`"`, `"facts":"pod"`, `"facts":"`+by+`"`).Replace(pod.Annotations[annotations.Status])
			if _, again, errs := Apply(pod, Facts{}, testConfig); again.Mode != report.Mode || again.Reason != report.Reason || len(errs) > 0 {
				t.Errorf("%s, known by the %s: mode %s for %s, errors %v; want %s for %s as before", name, by, again.Mode, again.Reason, errs, report.Mode, report.Reason)
			}
		}
	}
}

// Each of the facts by which the table of decisions knows of an interface gives its name, the more certain one first.
func TestFindInterface(t *testing.T) {
	s := &state{report: Report{Mode: plan.Rules}}
	for _, c := range []struct {
		want string
		know func()
	}{
		{"k6t-earlier", func() { s.previous.Interfaces = []string{"k6t-earlier"} }},
		{"k6t-rerouted", func() { s.capture = mesh.Capture{RerouteInterfaces: []string{"k6t-rerouted"}} }},
		{"k6t-vmi", func() { s.binding, s.facts.VMI = kubevirt.BindingMasquerade, &kubevirt.VMI{PodInterface: "vmi"} }},
		{"k6t-given", func() { s.settings.Interfaces = []string{"k6t-given"} }},
	} {
		c.know()
		if findInterface(nil, s); !slices.Equal(s.interfaces, []string{c.want}) {
			t.Errorf("interfaces %q, want %s", s.interfaces, c.want)
		}
	}
}

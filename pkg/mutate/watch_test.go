package mutate

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/meshvirt/meshvirt/pkg/annotations"
	"github.com/meshvirt/meshvirt/pkg/decision"
	"github.com/meshvirt/meshvirt/pkg/kubevirt"
	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/templates"
)

// TestWatched has which pods get a watcher, and what a user is told of it.
func TestWatched(t *testing.T) {
	const multus = "mesh/second"
	udn := map[string]string{ovnPrimaryNetwork: ""}
	vmi := func() *kubevirt.VMI { return &kubevirt.VMI{Binding: kubevirt.BindingMasquerade} }
	for name, c := range map[string]struct {
		set     map[string]string // annotations
		facts   Facts
		watched bool
		warning string // "": none of the watch
	}{
		"an ordinary pod":                    {nil, Facts{}, false, ""},
		"an ordinary VMI":                    {nil, Facts{VMI: vmi()}, false, ""},
		"asked for":                          {map[string]string{annotations.Watch: "true"}, Facts{VMI: vmi()}, true, ""},
		"asked for, native":                  {map[string]string{annotations.Watch: "true", annotations.Mode: "native"}, Facts{}, true, ""},
		"asked for, nat-proxy":               {map[string]string{annotations.Watch: "true", annotations.Mode: "nat-proxy"}, Facts{}, true, ""},
		"auto is as nothing":                 {map[string]string{annotations.Watch: "auto"}, Facts{}, false, ""},
		"Multus":                             {map[string]string{multusDefaultNetwork: multus}, Facts{VMI: vmi()}, true, "annotation v1.multus-cni.io/default-network: the guest may be behind another interface than k6t-eth0: init container meshvirt-rules stays and looks for it"},
		"a primary network":                  {nil, Facts{VMI: vmi(), NamespaceLabels: udn}, true, "label k8s.ovn.org/primary-user-defined-network of the namespace: the guest may"},
		"a primary network, unwatched":       {map[string]string{annotations.Watch: "false"}, Facts{VMI: vmi(), NamespaceLabels: udn}, false, "nothing watches for it: remove annotation meshvirt.io/watch: false"},
		"a primary network, known name":      {nil, Facts{VMI: &kubevirt.VMI{Binding: kubevirt.BindingMasquerade, PodInterface: "ovn-udn1"}, NamespaceLabels: udn}, false, ""},
		"a primary network, unknown VMI":     {map[string]string{annotations.Interfaces: "k6t-ovn-udn1"}, Facts{NamespaceLabels: udn}, true, "than k6t-ovn-udn1"},
		"a primary network, all is given":    {map[string]string{annotations.Interfaces: "k6t-ovn-udn1", annotations.GuestAddresses: "10.0.2.2"}, Facts{NamespaceLabels: udn}, false, ""},
		"a primary network, Kubernetes 1.28": {nil, Facts{NamespaceLabels: udn, NoNativeSidecars: true}, false, "needs Kubernetes 1.29 or later: set annotation meshvirt.io/interfaces"},
		"tproxy":                             {map[string]string{annotations.Mode: "tproxy"}, Facts{}, true, ""},
		"tproxy, unwatched":                  {map[string]string{annotations.Mode: "tproxy", annotations.Watch: "false"}, Facts{}, true, "annotation meshvirt.io/watch: false has no effect in mode tproxy"},
	} {
		t.Run(name, func(t *testing.T) {
			pod := recorded(t)
			if c.facts.NoNativeSidecars {
				pod = readPod(t, "rules-oldest-kubevirt") // without any native sidecar, which would tell that there are some
			}
			for k, v := range c.set {
				pod.Annotations[k] = v
			}
			out, report, errs := Apply(pod, c.facts, testConfig)
			if len(errs) > 0 || report.Plan == nil {
				t.Fatalf("errors %v, report\n%s", errs, report)
			}
			r := out.Spec.InitContainers[templates.Index(out.Spec.InitContainers, templates.RulesName)]
			sidecar := r.RestartPolicy != nil && *r.RestartPolicy == corev1.ContainerRestartPolicyAlways
			if got := []bool{report.Plan.WatchPort != 0, slices.Equal(r.Args, []string{"-watch"}), sidecar}; !slices.Equal(got, []bool{c.watched, c.watched, c.watched}) {
				t.Errorf("port, argument and restart policy of a watcher: %t, want all %t", got, c.watched)
			}
			about := slices.DeleteFunc(slices.Clone(report.Warnings), func(w string) bool { return !strings.Contains(w, annotations.Watch) })
			if want := map[bool]int{true: 1}[c.warning != ""]; len(about) != want || want == 1 && !strings.Contains(about[0], c.warning) {
				t.Errorf("warnings %q, want %q", about, c.warning)
			}
		})
	}
}

func TestWatchIsRefused(t *testing.T) {
	pod := readPod(t, "rules-oldest-kubevirt")
	pod.Annotations[annotations.Watch] = "true"
	_, report, errs := Apply(pod, Facts{NoNativeSidecars: true}, testConfig)
	if report.Reason != decision.Invalid || len(errs) != 1 || !strings.Contains(errs[0].Error(), "annotations[meshvirt.io/watch]: Invalid value: \"true\": want auto or false") {
		t.Errorf("%s, errors %v; want the annotation refused before Kubernetes 1.29", report, errs)
	}
}

// TestAssumed has what is certain: what the VMI or the user says.
func TestAssumed(t *testing.T) {
	for name, c := range map[string]struct {
		set   map[string]string
		facts Facts
		want  plan.Assumed
	}{
		"the pod alone":        {nil, Facts{}, plan.Assumed{Interfaces: true, Guest: true}},
		"the VMI":              {nil, Facts{VMI: &kubevirt.VMI{Binding: kubevirt.BindingMasquerade}}, plan.Assumed{Interfaces: true}},
		"its status":           {nil, Facts{VMI: &kubevirt.VMI{Binding: kubevirt.BindingMasquerade, PodInterface: "eth0"}}, plan.Assumed{}},
		"the user's interface": {map[string]string{annotations.Interfaces: "k6t-eth0"}, Facts{}, plan.Assumed{Guest: true}},
		"the user's address":   {map[string]string{annotations.GuestAddresses: "10.0.2.2"}, Facts{}, plan.Assumed{Interfaces: true}},
		"a name that is not KubeVirt's": {map[string]string{"istio.io/reroute-virtual-interfaces": "k6t-net1", "traffic.sidecar.istio.io/kubevirtInterfaces": "k6t-net1"},
			Facts{}, plan.Assumed{Guest: true}},
	} {
		pod := recorded(t)
		for k, v := range c.set {
			pod.Annotations[k] = v
		}
		if strings.HasPrefix(name, "a name") {
			setArg(pod, "-k", "k6t-net1")
		}
		_, report, _ := Apply(pod, c.facts, testConfig)
		if report.Plan == nil || report.Plan.Assumed != c.want {
			t.Errorf("%s: plan %+v, want assumed %+v", name, report.Plan, c.want)
		}
	}
}

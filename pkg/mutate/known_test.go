package mutate

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"github.com/meshvirt/meshvirt/pkg/annotations"
	"github.com/meshvirt/meshvirt/pkg/decision"
	"github.com/meshvirt/meshvirt/pkg/kubevirt"
	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/templates"
	"github.com/meshvirt/meshvirt/test/corpus"
)

// The VMI is known once and not later, or was never known: what was decided with it stays.
func TestWorseFactsChangeNothing(t *testing.T) {
	unknown := Facts{Unknown: "no answer"}
	for name, c := range map[string]struct {
		dir string
		vmi func(*kubevirt.VMI)
	}{
		"custom network": {"rules-custom-network", func(*kubevirt.VMI) {}},
		"port ranges":    {"rules-native-sidecar", func(v *kubevirt.VMI) { v.TCP = []plan.PortRange{{First: 8000, Last: 8999}}; v.UDP = nil }},
		"another bridge": {"rules-native-sidecar", func(v *kubevirt.VMI) { v.PodInterface = "eth7" }},
		"one family":     {"rules-native-sidecar", func(v *kubevirt.VMI) { v.Annotations = map[string]string{annotations.GuestAddresses: "10.9.8.7"} }},
		"annotations that the pod does not have": {"rules-native-sidecar", func(v *kubevirt.VMI) {
			v.Annotations = map[string]string{
				annotations.Mode: "nat-proxy", annotations.ExcludeOutboundCIDRs: "10.1.0.0/16", annotations.ExcludeOutboundPorts: "3306",
				annotations.ExcludeInboundPorts: "22", annotations.IncludeOutboundCIDRs: "10.0.0.0/8,fd00::/8", annotations.Interfaces: "k6t-any",
			}
		}},
		"watched": {"rules-native-sidecar", func(v *kubevirt.VMI) { v.Annotations = map[string]string{annotations.Watch: "true"} }},
		"passt":   {"process-passt", func(*kubevirt.VMI) {}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join("testdata/golden", c.dir)
			vmi := readVMI(t, filepath.Join(dir, "vmi.yaml"))
			if vmi == nil {
				vmi = &kubevirt.VMI{Name: "vm-web", Binding: kubevirt.BindingMasquerade, TCP: []plan.PortRange{plan.Port(80)}}
			}
			c.vmi(vmi)
			in := readYAML(t, filepath.Join(dir, "pod.yaml"))
			once, _ := applyJSON(t, in, Facts{VMI: vmi})
			if !strings.Contains(once, `\"facts\":\"vmi\"`) {
				t.Fatalf("status does not say that the VMI was known:\n%s", once)
			}
			twice, report := applyJSON(t, once, unknown)
			if twice != once {
				t.Errorf("the pod changed (-known +unknown)\n%s", cmp.Diff(generic(t, once), generic(t, twice)))
			}
			if strings.Contains(report, "is not known") {
				t.Errorf("report %s\nwant no warning: the pod alone did not decide", report)
			}
			// The check can fail: the pod alone decides otherwise, or at least says so.
			if alone, _ := applyJSON(t, in, unknown); alone == once {
				t.Error("the VMI makes no difference")
			}
		})
	}
}

// The same for every pod of the corpus beside its own VMI.
func TestWorseFactsChangeNoPodOfTheCorpus(t *testing.T) {
	adapted := 0
	for _, file := range corpus.Pods(t, "pods") {
		vmi := recordedVMI(t, file)
		in := string(corpus.JSON(t, file))
		once, _ := applyJSON(t, in, Facts{VMI: vmi})
		if once == in {
			continue
		}
		adapted++
		if twice, _ := applyJSON(t, once, Facts{Unknown: "no answer"}); twice != once {
			t.Errorf("%s changed (-known +unknown)\n%s", file, cmp.Diff(generic(t, once), generic(t, twice)))
		}
	}
	if adapted < 50 {
		t.Errorf("%d pods were adapted, want at least 50", adapted)
	}
}

// What the pod says itself counts more than what an earlier admission read.
func TestRecallGivesWayToThePod(t *testing.T) {
	pod := readPod(t, "rules-native-sidecar")
	vmi := &kubevirt.VMI{Binding: kubevirt.BindingMasquerade, Annotations: map[string]string{annotations.Mode: "nat-proxy"}}
	pod, report, errs := Apply(pod, Facts{VMI: vmi}, testConfig)
	if len(errs) > 0 || report.Mode != plan.NATProxy {
		t.Fatalf("mode %s, errors %v; want nat-proxy", report.Mode, errs)
	}
	pod.Annotations[annotations.Mode] = "rules"
	if _, report, _ = Apply(pod, Facts{}, testConfig); report.Mode != plan.Rules {
		t.Errorf("mode %s, want rules, as the pod's annotation says", report.Mode)
	}
	delete(pod.Annotations, annotations.Mode)
	for name, edit := range map[string]func(*corev1.Pod){
		"plan of another release": func(p *corev1.Pod) {
			i := templates.Index(p.Spec.InitContainers, templates.RulesName)
			c := p.Spec.InitContainers[i].DeepCopy()
			c.Env[0].Value = strings.Replace(c.Env[0].Value, plan.Release, "0.0.1", 1)
			p.Spec.InitContainers[i] = *c
		},
		"status without the VMI": func(p *corev1.Pod) {
			p.Annotations[annotations.Status] = strings.Replace(p.Annotations[annotations.Status], `"facts":"vmi"`, `"facts":"pod"`, 1)
		},
	} {
		p := pod.DeepCopy()
		edit(p)
		if _, report, _ := Apply(p, Facts{Unknown: "no answer"}, testConfig); report.Mode != plan.Rules || !strings.Contains(report.String(), "is not known (no answer)") {
			t.Errorf("%s: report\n%s\nwant a decision by the pod alone", name, report)
		}
	}
}

func TestSaysWhatIsAround(t *testing.T) {
	const (
		alone  = "warning: the VirtualMachineInstance is not known (KubeVirt is away): decided by the pod alone, with the guest at KubeVirt's defaults 10.0.2.2 and fd10:0:2::2; if vmNetworkCIDR is set, set annotation meshvirt.io/guest-addresses too, or meshvirt.io/watch: \"true\"\n"
		refuse = "warning: namespace mesh enforces Pod Security level baseline, which refuses capability NET_ADMIN of init container meshvirt-rules: label it pod-security.kubernetes.io/enforce=privileged"
	)
	level := func(l string) map[string]string { return map[string]string{"pod-security.kubernetes.io/enforce": l} }
	for name, c := range map[string]struct {
		dir   string
		facts Facts
		want  []string // of alone and refuse
	}{
		"nothing":                {"rules-native-sidecar", Facts{}, nil},
		"unknown VMI":            {"rules-native-sidecar", Facts{Unknown: "KubeVirt is away"}, []string{alone}},
		"unknown, left alone":    {"off-no-mesh", Facts{Unknown: "KubeVirt is away"}, nil},
		"baseline":               {"rules-native-sidecar", Facts{NamespaceLabels: level("baseline")}, []string{refuse}},
		"baseline, left alone":   {"off-no-mesh", Facts{NamespaceLabels: level("baseline")}, nil},
		"baseline, no container": {"process-passt", Facts{NamespaceLabels: level("baseline"), VMI: &kubevirt.VMI{Binding: kubevirt.BindingPasst}}, nil},
		"privileged":             {"rules-native-sidecar", Facts{NamespaceLabels: level("privileged")}, nil},
		"no level":               {"rules-native-sidecar", Facts{NamespaceLabels: map[string]string{"a": "b"}}, nil},
	} {
		pod := readPod(t, c.dir)
		pod.Namespace = "mesh"
		_, report, _ := Apply(pod, c.facts, testConfig)
		for _, w := range []string{alone, refuse} {
			want := 0
			for _, have := range c.want {
				if have == w {
					want = 1
				}
			}
			if n := strings.Count(report.String(), w); n != want {
				t.Errorf("%s: %d times (want %d) %q in\n%s", name, n, want, w, report)
			}
		}
	}
}

// The API server's namespaceSelector does the same before us; this holds if somebody changes it.
func TestNamespaceOptsOut(t *testing.T) {
	pod := readPod(t, "rules-native-sidecar")
	for value, want := range map[string]decision.Reason{"disabled": decision.OptedOut, "enabled": decision.MasqueradeSidecar} {
		out, report, _ := Apply(pod, Facts{NamespaceLabels: map[string]string{annotations.Inject: value}}, testConfig)
		if report.Reason != want || (out == pod) != (want == decision.OptedOut) {
			t.Errorf("%s: reason %s, changed %t; want %s", value, report.Reason, out != pod, want)
		}
	}
}

func readPod(t *testing.T, golden string) *corev1.Pod {
	t.Helper()
	pod := &corev1.Pod{}
	if err := json.Unmarshal([]byte(readYAML(t, filepath.Join("testdata/golden", golden, "pod.yaml"))), pod); err != nil {
		t.Fatal(err)
	}
	return pod
}

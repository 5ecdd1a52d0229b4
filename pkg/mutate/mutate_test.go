package mutate

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"github.com/meshvirt/meshvirt/pkg/annotations"
	"github.com/meshvirt/meshvirt/pkg/decision"
	"github.com/meshvirt/meshvirt/pkg/kubevirt"
	"github.com/meshvirt/meshvirt/pkg/patch"
	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/templates"
	"github.com/meshvirt/meshvirt/test/corpus"
)

// recorded is a masquerade VM's pod with ports 22 and 80 beside a native Istio sidecar.
func recorded(t *testing.T) *corev1.Pod {
	t.Helper()
	return corpus.Pod(t, corpus.Sidecar)
}

func TestPodsThatAreNotOursStayAsTheyAre(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*corev1.Pod)
		want   decision.Reason
	}{
		"no virt-launcher":   {func(p *corev1.Pod) { delete(p.Labels, "kubevirt.io") }, decision.NotVirtLauncher},
		"a hotplug pod":      {func(p *corev1.Pod) { p.Labels["kubevirt.io"] = "hotplug-disk" }, decision.NotVirtLauncher},
		"host network":       {func(p *corev1.Pod) { p.Spec.HostNetwork = true }, decision.HostNetwork},
		"opt-out by label":   {func(p *corev1.Pod) { p.Labels[annotations.Inject] = "false" }, decision.OptedOut},
		"opt-out by key":     {func(p *corev1.Pod) { p.Annotations[annotations.Inject] = "false" }, decision.OptedOut},
		"opt-out wins":       {func(p *corev1.Pod) { p.Annotations[annotations.Mode] = "x"; p.Labels[annotations.Inject] = "false" }, decision.OptedOut},
		"mode off":           {func(p *corev1.Pod) { p.Annotations[annotations.Mode] = "off" }, decision.OptedOut},
		"no mesh":            {func(p *corev1.Pod) { p.Spec.InitContainers = nil }, decision.NoMesh},
		"interception NONE":  {func(p *corev1.Pod) { setArg(p, "-m", "NONE") }, decision.NoInterception},
		"empty pod":          {func(p *corev1.Pod) { *p = corev1.Pod{} }, decision.NotVirtLauncher},
		"nothing to reroute": {func(p *corev1.Pod) { setArg(p, "-k", ""); dropInterfaceAnnotations(p) }, decision.NoVirtualInterface},
	} {
		t.Run(name, func(t *testing.T) {
			pod := recorded(t)
			c.change(pod)
			out, report, errs := Apply(pod, Facts{}, testConfig)
			if out != pod || report.Mode != plan.Off || report.Reason != c.want || len(errs) > 0 || len(report.Changes) > 0 {
				t.Errorf("report %+v, errors %v, want mode off for %s", report, errs, c.want)
			}
			if report.Plan != nil {
				t.Error("a pod that is left alone has a plan")
			}
		})
	}
}

func setArg(p *corev1.Pod, flag, value string) {
	args := p.Spec.InitContainers[0].Args
	args[slices.Index(args, flag)+1] = value
}

func dropInterfaceAnnotations(p *corev1.Pod) {
	delete(p.Annotations, "istio.io/reroute-virtual-interfaces")
	delete(p.Annotations, "traffic.sidecar.istio.io/kubevirtInterfaces")
}

func TestInvalidPods(t *testing.T) {
	var many []string
	for i := range 20000 {
		many = append(many, netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 1}).String())
	}
	for name, c := range map[string]struct {
		change func(*corev1.Pod)
		want   []string // parts of the errors, in order
	}{
		"no containers":       {func(p *corev1.Pod) { p.Spec.Containers = nil }, []string{"spec.containers: Required"}},
		"duplicate names":     {func(p *corev1.Pod) { p.Spec.Containers[0].Name = "istio-proxy" }, []string{`spec.containers[0].name: Duplicate value: "istio-proxy"`}},
		"a name of ours":      {func(p *corev1.Pod) { p.Spec.Containers[0].Name = templates.RulesName }, []string{`spec.containers[0].name: Invalid value: "meshvirt-rules": want another name`}},
		"flag without value":  {func(p *corev1.Pod) { p.Spec.InitContainers[0].Args = []string{"istio-iptables", "-p"} }, []string{"spec.initContainers[0].args: Invalid", "-p/--envoy-port"}},
		"mesh port not known": {func(p *corev1.Pod) { setArg(p, "-z", "seventy") }, []string{"spec.initContainers[0].args: Invalid", "inbound-capture-port"}},
		"every annotation": {func(p *corev1.Pod) {
			p.Annotations[annotations.Mode] = "warp"
			p.Annotations[annotations.GuestAddresses] = "10.0.2"
			p.Annotations[annotations.ExcludeInboundPorts] = "0"
		}, []string{annotations.Mode, annotations.GuestAddresses, annotations.ExcludeInboundPorts}},
		"more than a container's environment takes": {func(p *corev1.Pod) {
			p.Annotations[annotations.ExcludeOutboundCIDRs] = strings.Join(many, ",")
		}, []string{"metadata.annotations", "give fewer or wider CIDRs"}},
		"the pod's own interface": {func(p *corev1.Pod) { p.Annotations[annotations.Interfaces] = "eth0" }, []string{"metadata.annotations", `podInterface "eth0"`}},
	} {
		t.Run(name, func(t *testing.T) {
			pod := recorded(t)
			c.change(pod)
			out, report, errs := Apply(pod, Facts{}, testConfig)
			if out != pod || report.Reason != decision.Invalid || len(errs) == 0 {
				t.Fatalf("report %+v, errors %v; want it refused", report, errs)
			}
			all := errs.ToAggregate().Error()
			for _, want := range c.want {
				if !strings.Contains(all, want) {
					t.Errorf("errors %s, want %q", all[:min(len(all), 500)], want)
				}
			}
		})
	}
}

// TestNativeWarns: what mode native cannot do is said, and nothing where it need not.
func TestNativeWarns(t *testing.T) {
	keys := map[string]string{
		annotations.ExcludeOutboundCIDRs: "10.96.0.1/32", annotations.ExcludeOutboundPorts: "3306",
		annotations.IncludeOutboundCIDRs: "*", annotations.ExcludeInboundPorts: "22",
	}
	for _, mode := range []plan.Mode{plan.Native, plan.Rules} {
		pod := recorded(t)
		pod.Annotations[annotations.Mode] = string(mode)
		for key, value := range keys {
			pod.Annotations[key] = value
		}
		_, report, errs := Apply(pod, Facts{}, testConfig)
		if len(errs) > 0 {
			t.Fatal(errs)
		}
		all := strings.Join(report.Warnings, "\n")
		for key := range keys {
			if got := strings.Contains(all, "annotation "+key+": has no effect in mode native"); got != (mode == plan.Native) {
				t.Errorf("mode %s: warnings %q, want one of %s: %t", mode, all, key, mode == plan.Native)
			}
		}
	}
}

// A pod admitted again carries the API server's defaults in our containers, and perhaps what other
// webhooks added. That is no reason to change them.
func TestDefaultedOutputIsNotChanged(t *testing.T) {
	pod := recorded(t)
	pod.Annotations[annotations.Mode] = "nat-proxy"
	out, _, errs := Apply(pod, Facts{}, testConfig)
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	for i := range out.Spec.InitContainers {
		c := &out.Spec.InitContainers[i]
		c.TerminationMessagePath = "/dev/termination-log"
		c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: "kube-api-access-x", MountPath: "/var/run/secrets/kubernetes.io/serviceaccount"})
		for _, p := range []*corev1.Probe{c.StartupProbe, c.ReadinessProbe, c.LivenessProbe} {
			if p != nil {
				p.HTTPGet.Scheme = corev1.URISchemeHTTP
			}
		}
	}
	again, report, errs := Apply(out, Facts{}, testConfig)
	if ops := patch.Between(out, again); len(ops) > 0 || len(errs) > 0 {
		t.Errorf("patch %v, errors %v, changes %v", ops, errs, report.Changes)
	}
}

// The sibling: what somebody really changed is put right.
func TestTamperedOutputIsRepaired(t *testing.T) {
	out, _, _ := Apply(recorded(t), Facts{}, testConfig)
	i := templates.Index(out.Spec.InitContainers, templates.RulesName)
	out.Spec.InitContainers[i].SecurityContext.Capabilities.Add = []corev1.Capability{"SYS_ADMIN"}
	again, _, _ := Apply(out, Facts{}, testConfig)
	ops := patch.Between(out, again)
	if want := fmt.Sprintf("/spec/initContainers/%d", i); len(ops) != 1 || ops[0].Path != want || ops[0].Operation != "replace" {
		t.Errorf("patch %v, want one replace of %s", ops, want)
	}
}

// A pod that was adapted in a mode with a relay, and is admitted again in one without, loses it.
func TestRelayOfAnEarlierModeGoes(t *testing.T) {
	for _, first := range []plan.Mode{plan.NATProxy, plan.TProxy} {
		pod := recorded(t)
		pod.Annotations[annotations.Mode] = string(first)
		once, _ := applyJSON(t, string(must(json.Marshal(pod))), Facts{})
		if !strings.Contains(once, `"`+templates.ProxyName+`"`) {
			t.Fatalf("mode %s has no relay", first)
		}
		twice, _ := applyJSON(t, strings.Replace(once, `"meshvirt.io/mode":"`+string(first)+`"`, `"meshvirt.io/mode":"rules"`, 1), Facts{})
		fresh := recorded(t)
		fresh.Annotations[annotations.Mode] = string(plan.Rules)
		want, _ := applyJSON(t, string(must(json.Marshal(fresh))), Facts{})
		var got, wanted corev1.Pod
		if err := json.Unmarshal([]byte(twice), &got); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal([]byte(want), &wanted); err != nil {
			t.Fatal(err)
		}
		// The record of what was there before names the mode that the pod came with first; all else is equal.
		if diff := cmp.Diff(wanted.Spec, got.Spec); diff != "" {
			t.Errorf("%s, then rules (-rules alone +got)\n%s", first, diff)
		}
	}
}

// When the mesh injects after us, the API server invokes us again (reinvocationPolicy IfNeeded).
func TestMeshInjectedAfterUs(t *testing.T) {
	bare := corpus.Pod(t, "pods/v1.9.0/masquerade-istio-ports/pod.yaml")
	if _, report, _ := Apply(bare, Facts{}, testConfig); report.Reason != decision.NoMesh {
		t.Fatalf("reason %s, want %s", report.Reason, decision.NoMesh)
	}
	if _, report, _ := Apply(recorded(t), Facts{}, testConfig); report.Mode != plan.Rules {
		t.Fatalf("mode %s, want rules", report.Mode)
	}
}

func TestPlan(t *testing.T) {
	planOf := func(t *testing.T, pod *corev1.Pod, facts Facts) plan.Plan {
		t.Helper()
		_, report, errs := Apply(pod, facts, testConfig)
		if len(errs) > 0 || report.Plan == nil {
			t.Fatalf("report %+v, errors %v", report, errs)
		}
		return *report.Plan
	}
	t.Run("Istio's exclusions and the user's add up", func(t *testing.T) {
		pod := recorded(t)
		setArg(pod, "-x", "10.96.0.1/32")
		setArg(pod, "-d", "15090,15021,15020,22")
		pod.Annotations[annotations.ExcludeOutboundCIDRs] = "192.0.2.0/24,10.96.0.1/32"
		pod.Annotations[annotations.ExcludeInboundPorts] = "3389"
		p := planOf(t, pod, Facts{})
		if got := fmt.Sprint(p.Outbound.ExcludeCIDRs, p.Inbound.ExcludePorts); got != "[10.96.0.1/32 192.0.2.0/24] [22 3389]" {
			t.Errorf("exclusions %s", got)
		}
	})
	t.Run("inclusion is replaced", func(t *testing.T) {
		pod := recorded(t)
		pod.Annotations[annotations.IncludeOutboundCIDRs] = "10.0.0.0/8"
		if p := planOf(t, pod, Facts{}); p.Outbound.All || fmt.Sprint(p.Outbound.IncludeCIDRs) != "[10.0.0.0/8]" {
			t.Errorf("outbound %+v", p.Outbound)
		}
	})
	t.Run("the grace period bounds the drain", func(t *testing.T) {
		for grace, want := range map[int64]int64{60: 30, 20: 15, 3: 0} {
			pod := recorded(t)
			pod.Annotations[annotations.Mode] = "nat-proxy"
			pod.Spec.TerminationGracePeriodSeconds = &grace
			if p := planOf(t, pod, Facts{}); p.Proxy.DrainSeconds != want {
				t.Errorf("grace period %d s: drain %d s, want %d", grace, p.Proxy.DrainSeconds, want)
			}
		}
	})
	t.Run("the VMI knows ranges, networks and the pod's interface", func(t *testing.T) {
		vmi, err := kubevirt.ParseVMI([]byte(`{"kind":"VirtualMachineInstance","metadata":{"name":"web","annotations":{"meshvirt.io/exclude-outbound-ports":"3306"}},
			"spec":{"networks":[{"name":"red","multus":{}},{"name":"default","pod":{"vmNetworkCIDR":"192.168.7.0/29"}}],
			"domain":{"devices":{"interfaces":[{"name":"red","bridge":{}},{"name":"default","masquerade":{},
			"ports":[{"port":53,"protocol":"UDP"}],"portRanges":[{"protocol":"TCP","start":8000,"end":8100}]}]}}},
			"status":{"interfaces":[{"name":"default","podInterfaceName":"ovn-udn1"}]}}`))
		if err != nil {
			t.Fatal(err)
		}
		p := planOf(t, recorded(t), Facts{VMI: vmi})
		if got := fmt.Sprintf("%v %v %v %v", p.Interfaces, p.PodInterface, p.Guest, p.Outbound.ExcludePorts); got != "[k6t-ovn-udn1] ovn-udn1 {192.168.7.2 fd10:0:2::2 [8000-8100] [53]} [3306]" {
			t.Errorf("plan %s", got)
		}
	})
}

package mutate

import (
	"fmt"
	"path"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/meshvirt/meshvirt/pkg/annotations"
	"github.com/meshvirt/meshvirt/pkg/decision"
	"github.com/meshvirt/meshvirt/pkg/mesh"
	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/redirect"
	"github.com/meshvirt/meshvirt/test/corpus"
)

func istioContainer(p *corev1.Pod) *corev1.Container {
	return &p.Spec.InitContainers[redirect.Container(p)]
}

// What Istio can be told, by whatever way, arrives in the plan.
func TestIstioForms(t *testing.T) {
	const web = "pods/v1.9.0/masquerade-istio-ports/injected-"
	setEnv := func(kv ...string) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			c := istioContainer(p)
			for i := 0; i < len(kv); i += 2 {
				c.Env = append(c.Env, corev1.EnvVar{Name: kv[i], Value: kv[i+1]})
			}
		}
	}
	show := func(parts ...any) string { return strings.TrimSpace(fmt.Sprintln(parts...)) }
	set := func(p *corev1.Pod, flag, value string) {
		args := istioContainer(p).Args
		args[slices.Index(args, flag)+1] = value
	}
	for _, c := range []struct {
		name, file string
		change     func(*corev1.Pod)
		get        func(plan.Plan) string
		want       string
	}{
		{"a revision", web + "1.31.0-rc.0-rev-canary.yaml", nil, func(p plan.Plan) string { return show(p.Mode, p.Interfaces) }, "rules [k6t-eth0]"},
		{"other ports", web + "1.26.8-native.yaml", func(p *corev1.Pod) { set(p, "-p", "16001"); set(p, "-z", "16006") }, func(p plan.Plan) string { return show(p.Mesh.OutboundPort, p.Mesh.InboundPort) }, "16001 16006"},
		{"the relay's own user and group", web + "1.22.8-classic.yaml", func(p *corev1.Pod) {
			p.Annotations[annotations.Mode] = string(plan.NATProxy)
			set(p, "-u", "1500")
			c := istioContainer(p)
			c.Args = append(c.Args, "-g", "1501")
		}, func(p plan.Plan) string { return show(p.Mesh.UID, p.Mesh.GID, p.Proxy.UID) }, "1500 1501 1502"},
		{"another user and group", web + "1.22.8-classic.yaml", func(p *corev1.Pod) {
			set(p, "-u", "1001010000")
			c := istioContainer(p)
			c.Args = append(c.Args, "-g", "1001010001")
		}, func(p plan.Plan) string { return show(p.Mesh.UID, p.Mesh.GID) }, "1001010000 1001010001"},
		{"the installation's exclusions", web + "1.31.0-rc.0-exclude-ranges.yaml", nil, func(p plan.Plan) string { return show(len(p.Outbound.ExcludeCIDRs) > 0) }, "true"},
		{"native nftables", web + "1.31.0-rc.0-nftables.yaml", nil, func(p plan.Plan) string { return show(p.Mode, p.Outbound.All) }, "rules true"},
		{"native nftables by istio-cni", web + "1.31.0-rc.0-cni-nftables.yaml", nil, func(p plan.Plan) string { return show(p.Mode, p.Inbound.All) }, "rules true"},
		{"DNS and both families by metadata", web + "1.31.0-rc.0-dns-dualstack.yaml", nil, func(p plan.Plan) string { return show(p.Mesh.DNS != nil, p.Mesh.DualStack) }, "true true"},
		{"DNS by variable", web + "1.26.8-classic.yaml", setEnv("ISTIO_META_DNS_CAPTURE", "true", "CAPTURE_ALL_DNS", "true"), func(p plan.Plan) string { return show(*p.Mesh.DNS) }, "{15053 true}"},
		{"both families by variable, obeyed", web + "1.22.8-native.yaml", setEnv("ISTIO_DUAL_STACK", "true"), func(p plan.Plan) string { return show(p.Mesh.DualStack) }, "true"},
		{"both families by variable, ignored", web + "1.18.7-classic.yaml", setEnv("ISTIO_DUAL_STACK", "true"), func(p plan.Plan) string { return show(p.Mesh.DualStack) }, "false"},
		{"HBONE stays with the mesh", web + "1.31.0-rc.0-hbone.yaml", nil, func(p plan.Plan) string { return show(slices.Contains(p.Mesh.OwnPorts, 15008)) }, "true"},
		{"TPROXY by argument", web + "1.31.0-rc.0-tproxy.yaml", nil, func(p plan.Plan) string { return show(p.Mode, p.Mesh.TProxyMark) }, "rules 1337"},
		{"TPROXY by annotation", web + "1.31.0-rc.0-cni.yaml", func(p *corev1.Pod) { p.Annotations[mesh.AnnotationInterception] = "TPROXY" }, func(p plan.Plan) string { return show(p.Mode, p.Mesh.TProxyMark) }, "rules 1337"},
		{"1.11 has no -c, and exempts 22", web + "1.18.7-classic.yaml", func(p *corev1.Pod) { istioContainer(p).Image = "docker.io/istio/proxyv2:1.11.8" }, func(p plan.Plan) string { return show(p.Inbound.ExcludePorts) }, "[22]"},
	} {
		t.Run(c.name, func(t *testing.T) {
			pod := corpus.Pod(t, c.file)
			if c.change != nil {
				c.change(pod)
			}
			_, report, errs := Apply(pod, Facts{}, testConfig)
			if report.Plan == nil || len(errs) > 0 {
				t.Fatalf("report %+v, errors %v", report, errs)
			}
			if got := c.get(*report.Plan); got != c.want {
				t.Errorf("plan has %s, want %s", got, c.want)
			}
		})
	}
}

// Pods as the other meshes' injectors made them.
func TestOtherMeshes(t *testing.T) {
	all := corpus.Pods(t, "pods-other")
	for _, file := range all {
		name := strings.TrimPrefix(file, "pods-other/")
		variant := strings.TrimSuffix(strings.TrimPrefix(path.Base(file), "injected-"), ".yaml")
		want, wantMesh := decision.MeshUnsupported, name[:strings.IndexByte(name, '-')]
		switch variant {
		case "pod-disabled", "no-annotation":
			want, wantMesh = decision.NoMesh, ""
		case "no-tproxy":
			want = decision.NoInterception
		}
		for _, mode := range []plan.Mode{plan.Auto, plan.NATProxy, plan.Native} {
			t.Run(name+"/"+string(mode), func(t *testing.T) {
				pod := corpus.Pod(t, file)
				pod.Annotations[annotations.Mode] = string(mode)
				out, report, errs := Apply(pod, Facts{}, testConfig)
				if out != pod || len(errs) > 0 || report.Reason != want || report.Mesh != wantMesh {
					t.Errorf("reason %s, mesh %q, errors %v; want it left alone for %s, mesh %q", report.Reason, report.Mesh, errs, want, wantMesh)
				}
				if told := len(report.Warnings) > 0; told != (wantMesh != "") {
					t.Errorf("warnings %q", report.Warnings)
				}
			})
		}
	}
	if len(all) < 14 {
		t.Errorf("%d pods, want those of three meshes", len(all))
	}
}

// What an injector spoilt is told, and what it did not is not.
func TestSpoiltPods(t *testing.T) {
	seen := map[string]int{}
	for _, file := range corpus.Pods(t, "pods") {
		pod := corpus.Pod(t, file)
		_, report, _ := Apply(pod, Facts{}, testConfig)
		warnings := strings.Join(report.Warnings, "\n")
		newKubeVirt := strings.Contains(file, "/v1.9.0/")
		for word, want := range map[string]bool{
			"restartPolicy of another": newKubeVirt && strings.Contains(file, "1.18.7-cni-classic"),
			"image and another source": newKubeVirt && (strings.Contains(file, "injected-1.18.7") || strings.Contains(file, "injected-1.22.8")),
		} {
			if got := strings.Contains(warnings, word); got != want {
				t.Errorf("%s: warned of %q: %t, want %t", file, word, got, want)
			} else if got {
				seen[word]++
			}
		}
	}
	if len(seen) != 2 {
		t.Errorf("seen %v, want both kinds", seen)
	}
}

// A pod that KubeVirt before 1.7 made, beside an istio-cni that loses its annotation, is in trouble only
// where nobody adapts it.
func TestLostAnnotation(t *testing.T) {
	for mode, want := range map[string]bool{"off": true, "native": false, "rules": false, "process": false} {
		pod := corpus.Pod(t, "pods/v1.9.0/masquerade-istio-ports/injected-1.26.8-cni.yaml")
		for i := range pod.Spec.InitContainers {
			c := &pod.Spec.InitContainers[i]
			c.Image = strings.Replace(c.Image, "1.26.8", "1.26.4", 1)
		}
		delete(pod.Annotations, "istio.io/reroute-virtual-interfaces")
		pod.Annotations[annotations.Mode] = mode
		_, report, _ := Apply(pod, Facts{}, testConfig)
		if got := strings.Contains(strings.Join(report.Warnings, "\n"), "does not see"); got != want {
			t.Errorf("mode %s: warnings %q", mode, report.Warnings)
		}
	}
}

// istio-init's interfaces may come from its environment, which stays as it is.
func TestInterfaceByVariable(t *testing.T) {
	pod := recorded(t)
	setArg(pod, "-k", "")
	args := &pod.Spec.InitContainers[0].Args
	i := slices.Index(*args, "-k")
	*args = slices.Delete(*args, i, i+2)
	dropInterfaceAnnotations(pod)
	pod.Spec.InitContainers[0].Env = append(pod.Spec.InitContainers[0].Env, corev1.EnvVar{Name: "KUBE_VIRT_INTERFACES", Value: "k6t-eth0"})
	out, report, errs := Apply(pod, Facts{}, testConfig)
	if report.Mode != plan.Rules || len(errs) > 0 {
		t.Fatalf("report %+v, errors %v", report, errs)
	}
	got := strings.Join(out.Spec.InitContainers[0].Args, " ")
	if !strings.Contains(got, "--istio-exclude-interfaces=k6t-eth0") || !strings.Contains(got, "--kube-virt-interfaces=") {
		t.Errorf("args %s, want flags that win over the variable", got)
	}
	again, second, _ := Apply(out, Facts{}, testConfig)
	if again := strings.Join(again.Spec.InitContainers[0].Args, " "); again != got || len(second.Changes) > 0 {
		t.Errorf("admitted again: args %s, changes %q", again, second.Changes)
	}
}

// In a pod that is no virt-launcher's, what the user excludes belongs to the pod's processes.
func TestExcludedPortsOfOptedInPods(t *testing.T) {
	for launcher, want := range map[bool]string{true: "[15008 15020 15021 15090] [5900]", false: "[15008 15020 15021 15090 5900] []"} {
		pod := recorded(t)
		if !launcher {
			delete(pod.Labels, "kubevirt.io")
			pod.Labels[annotations.Inject] = "true"
		}
		pod.Annotations[annotations.ExcludeInboundPorts] = "5900"
		_, report, errs := Apply(pod, Facts{}, testConfig)
		if report.Plan == nil {
			t.Fatalf("report %+v, errors %v", report, errs)
		}
		if got := fmt.Sprint(report.Plan.Mesh.OwnPorts, report.Plan.Inbound.ExcludePorts); got != want {
			t.Errorf("virt-launcher %t: own and excluded ports %s, want %s", launcher, got, want)
		}
	}
}

package mutate

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/meshvirt/meshvirt/pkg/annotations"
	"github.com/meshvirt/meshvirt/pkg/decision"
	"github.com/meshvirt/meshvirt/pkg/kubevirt"
	"github.com/meshvirt/meshvirt/pkg/mesh"
	"github.com/meshvirt/meshvirt/pkg/patch"
	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/redirect"
	"github.com/meshvirt/meshvirt/pkg/templates"
	"github.com/meshvirt/meshvirt/test/corpus"
)

// Every recorded pod of every KubeVirt and Istio release, in every mode, comes out with these
// properties. Golden cases show a few of them in full.
func TestCorpus(t *testing.T) {
	adapted := 0
	for _, file := range corpus.Pods(t, "pods") {
		in, vmi := corpus.JSON(t, file), recordedVMI(t, file)
		for _, facts := range []Facts{{}, {VMI: vmi}} {
			for _, mode := range plan.Modes {
				name := strings.TrimPrefix(file, "pods/") + "/" + string(mode)
				if facts.VMI != nil {
					name += "/vmi"
				}
				t.Run(name, func(t *testing.T) {
					var pod corev1.Pod
					if err := json.Unmarshal(in, &pod); err != nil {
						t.Fatal(err)
					}
					if mode != plan.Auto {
						pod.Annotations[annotations.Mode] = string(mode)
					}
					if checkCorpusPod(t, &pod, facts, mode) {
						adapted++
					}
				})
			}
		}
	}
	// More than 52 recorded pods are masquerade VMs beside a redirecting sidecar; a corpus that is not found
	// or a decision table that leaves all alone would pass everything above.
	if adapted < 300 {
		t.Errorf("%d pods were adapted, want at least 300", adapted)
	}
}

func checkCorpusPod(t *testing.T, pod *corev1.Pod, facts Facts, mode plan.Mode) (adapted bool) {
	in := string(must(json.Marshal(pod)))
	out, report, errs := Apply(pod, facts, testConfig)
	if len(errs) > 0 {
		inAmbient, nativeByTPROXY := report.Mesh == mesh.AmbientName, mode == plan.Native && strings.Contains(in, `"TPROXY"`)
		if mode == plan.Auto || inAmbient == (mode == plan.Ambient) && !nativeByTPROXY {
			t.Fatalf("errors %v", errs)
		}
		return false
	}
	if report.Mode == plan.Off {
		if out != pod || len(patch.Between(pod, out)) > 0 {
			t.Errorf("left alone (%s), but changed", report.Reason)
		}
		return false
	}
	if mode != plan.Auto && report.Mode != mode && report.Reason != decision.ProcessBinding {
		t.Errorf("mode is %s, want %s", report.Mode, mode)
	}
	patched, _ := applyJSON(t, in, facts)
	if again, _ := applyJSON(t, patched, facts); again != patched {
		t.Error("applied twice, it changes more")
	}

	// The injected containers stand right behind the mesh's, and before a native mesh sidecar.
	want := map[plan.Mode][]string{
		plan.Native:   {templates.RulesName},
		plan.Rules:    {templates.RulesName},
		plan.NATProxy: {templates.RulesName, templates.ProxyName},
		plan.TProxy:   {templates.RulesName, templates.ProxyName},
	}[report.Mode]
	i := redirect.Container(out)
	if report.Mode == plan.Ambient {
		if i >= 0 || out.Spec.InitContainers[0].Name != templates.RulesName || report.Mesh != mesh.AmbientName {
			t.Errorf("mode ambient beside mesh %q, first init container %s", report.Mesh, out.Spec.InitContainers[0].Name)
		}
		checkUndo(t, in, patched)
		return true
	}
	if i < 0 {
		if len(want) > 0 || len(out.Spec.InitContainers) != len(pod.Spec.InitContainers) {
			t.Errorf("mode %s beside mesh %q", report.Mode, report.Mesh)
		}
		return true
	}
	var got []string
	for _, c := range out.Spec.InitContainers[i+1:] {
		if len(got) < len(want) {
			got = append(got, c.Name)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("behind %s stand %v, want %v", out.Spec.InitContainers[i].Name, got, want)
	}
	if p := templates.Index(out.Spec.InitContainers, "istio-proxy"); p >= 0 && p < i {
		t.Errorf("istio-proxy stands before our containers")
	}

	// The guest's interface is rerouted in mode native, no news to Istio in mode process, and left alone by it in the others.
	capture := must(mesh.ReadIstio(mesh.Input{Args: out.Spec.InitContainers[i].Args, Annotations: out.Annotations, Image: out.Spec.InitContainers[i].Image, CNI: out.Spec.InitContainers[i].Name == "istio-validation"}))
	rerouted := slices.Contains(capture.RerouteInterfaces, "k6t-eth0")
	excluded := slices.Contains(capture.ExcludeInterfaces, "k6t-eth0")
	if native, none := report.Mode == plan.Native, report.Mode == plan.Process; rerouted != native || excluded == (native || none) {
		t.Errorf("mode %s: rerouted %t, excluded %t", report.Mode, rerouted, excluded)
	}

	checkUndo(t, in, patched)

	// Nothing that was there is lost: without our containers, annotations and the mesh's arguments
	// the pod is the old one.
	strip := func(p *corev1.Pod) *corev1.Pod {
		p = p.DeepCopy()
		p.Spec.InitContainers = slices.DeleteFunc(p.Spec.InitContainers, func(c corev1.Container) bool {
			return c.Name == templates.RulesName || c.Name == templates.ProxyName
		})
		p.Spec.InitContainers[redirect.Container(p)].Args = nil
		p.Spec.Volumes = slices.DeleteFunc(p.Spec.Volumes, templates.IsNoToken)
		for _, k := range []string{annotations.Status, annotations.Undo, mesh.AnnotationKubevirtInterfaces, mesh.AnnotationRerouteInterfaces, mesh.AnnotationExcludeInterfaces} {
			delete(p.Annotations, k)
		}
		return p
	}
	if a, b := must(json.Marshal(strip(pod))), must(json.Marshal(strip(out))); string(a) != string(b) {
		t.Errorf("something else changed\nbefore %s\nafter  %s", a, b)
	}
	return true
}

// recordedVMI gives the VMI of a recorded pod.
func recordedVMI(t *testing.T, pod string) *kubevirt.VMI {
	t.Helper()
	vmi, err := kubevirt.ParseVMI(corpus.VMI(t, pod))
	if err != nil {
		t.Fatalf("%s: %v", pod, err)
	}
	return vmi
}

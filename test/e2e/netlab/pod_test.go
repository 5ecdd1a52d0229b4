package netlab

import (
	"os"
	"path/filepath"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/meshvirt/meshvirt/pkg/annotations"
	"github.com/meshvirt/meshvirt/pkg/mutate"
	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/templates"
	"github.com/meshvirt/meshvirt/tools"
)

// TestRunPod runs a recorded pod as the webhook leaves it, and the same with a sidecar that keeps quiet.
func TestRunPod(t *testing.T) {
	root, err := tools.Root()
	do(t, err)
	b, err := os.ReadFile(filepath.Join(root, "test/corpus/pods/v1.9.0/masquerade-istio-noports/injected-1.31.0-rc.0-native.yaml"))
	do(t, err)
	var pod corev1.Pod
	do(t, yaml.Unmarshal(b, &pod))
	pod.Annotations[annotations.Mode] = string(plan.NATProxy)
	adapted, _, errs := mutate.Apply(&pod, mutate.Facts{}, mutate.Config{Image: templates.Image{Name: "example.com/dataplane:test"}})
	do(t, errs.ToAggregate())
	for name, c := range map[string]struct {
		quiet bool
		want  string
	}{
		"told":  {false, "ok outbound saw 10.244.1.17"},
		"quiet": {true, "ok saw 10.244.1.17"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, Options{Image: dataPlane(t), Pod: adapted, Quiet: c.quiet})
			running, err := l.RunPod(t.Context(), adapted, "v1.9.0-istio-noports-dual")
			do(t, err)
			if len(running) != 1 || running[templates.ProxyName] == nil {
				t.Errorf("containers that run on are %v, want %s alone", running, templates.ProxyName)
			}
			if r := l.Check(t.Context(), FlowNamed("egress-tcp4")); r.Outcome() != c.want {
				t.Errorf("%s, want %s", r, c.want)
			}
		})
	}
}

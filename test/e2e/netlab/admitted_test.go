package netlab

import (
	"os"
	"path/filepath"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/meshvirt/meshvirt/pkg/mutate"
	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/templates"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/istio"
	"github.com/meshvirt/meshvirt/tools"
)

// TestAmbientAsAdmitted runs the container that the webhook gives a recorded pod of an ambient mesh. The
// other tests of the mode have plans of their own.
func TestAmbientAsAdmitted(t *testing.T) {
	t.Parallel()
	root, err := tools.Root()
	do(t, err)
	b, err := os.ReadFile(filepath.Join(root, "test/corpus/pods/v1.9.0/ambient-label/pod.yaml"))
	do(t, err)
	var pod corev1.Pod
	do(t, yaml.Unmarshal(b, &pod))
	adapted, report, errs := mutate.Apply(&pod, mutate.Facts{}, mutate.Config{Image: templates.Image{Name: "example.com/dataplane:test"}})
	if report.Mode != plan.Ambient || len(errs) > 0 {
		t.Fatalf("report %s, errors %v", report, errs)
	}
	l := newLab(t, Options{DualStack: true, Image: dataPlane(t), Pod: adapted})
	startAmbient(t, l, NFT, istio.AmbientOptions{DualStack: true})
	do(t, l.RunInit(t.Context(), adapted.Spec.InitContainers[0]), l.KubeVirt(t.Context(), "v1.9.0-istio-ports-22-80-dual"), l.StartGuest(t.Context()))
	wantFlows(t, l, map[string]string{
		"egress-tcp4":     "ok outbound saw 10.244.1.17",
		"egress-tcp6":     "ok outbound saw fd00:10:244:1::11",
		"ingress-tcp4":    "ok inbound saw 10.244.2.20",
		"ingress-tcp6":    "ok inbound saw fd00:10:244:2::20",
		"tunnel-port":     "ok serving",
		"dns-udp":         ambientMember["dns-udp"],
		"attack-loopback": ambientMember["attack-loopback"],
	})
}

package netlab

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/meshvirt/meshvirt/pkg/annotations"
	"github.com/meshvirt/meshvirt/pkg/decision"
	"github.com/meshvirt/meshvirt/pkg/kubevirt"
	"github.com/meshvirt/meshvirt/pkg/mutate"
	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/templates"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/vm"
	"github.com/meshvirt/meshvirt/test/lab"
	"github.com/meshvirt/meshvirt/tools"
)

// firstNode is what a node needs for ambient redirection in its first form, and for KubeVirt's rules.
var firstNode = vm.Extra{
	Modules: []string{
		"veth", "bridge", "geneve", "ip_set_hash_ip", "nf_conntrack_netlink",
		"iptable_mangle", "iptable_nat", "xt_set", "xt_mark", "xt_connmark", "xt_tcpudp", "xt_TPROXY",
		"nf_tables", "nft_chain_nat", "nft_nat", "nft_masq", "nft_redir", "nft_ct", "nft_fib_inet", "nft_log", "nft_reject_inet",
	},
	Programs: []string{"/usr/sbin/nft", "/usr/sbin/iptables-legacy-restore"},
}

// TestFirstAmbient is Istio's ambient mode of 2022, when the node redirected pods by their addresses: a VM with
// masquerade binding, whose packets leave the pod with its address, is in the mesh in both directions like any
// pod, and MeshVirt has nothing to do. Without its address in the ipset everything goes past the mesh. With the
// rules of mode ambient the guest loses its TCP, because no ztunnel listens in the pod: mode off is for such a mesh.
func TestFirstAmbient(t *testing.T) {
	t.Parallel()
	lab.NeedRoot(t)
	labnode, err := Build(t.Context(), "test/e2e/netlab/labnode")
	do(t, err)
	firstform, err := Build(t.Context(), "test/e2e/netlab/firstform")
	do(t, err)
	rules, err := Build(t.Context(), "cmd/rules")
	do(t, err)
	extra := firstNode
	extra.Files = map[string]*os.File{"bin/firstform": firstform, "bin/meshvirt-rules": rules}
	plugins, err := filepath.Glob("/usr/lib/x86_64-linux-gnu/xtables/libxt_*.so")
	do(t, err)
	extra.Programs = append(extra.Programs, plugins...)
	machine, err := vm.StartAlone(t.Context(), labnode, extra)
	do(t, err)
	t.Cleanup(func() { machine.Close() })
	out, err := machine.Exec(t.Context(), 5*time.Minute, "firstform")
	if err != nil {
		t.Fatalf("%v\n%s", err, machine.Console())
	}
	var got map[string]map[string]string
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	past := map[string]string{}
	for name := range got["member"] {
		past[name] = noMesh[name]
	}
	past["tunnelled"] = "from members false, to members false"
	member := with(past, map[string]string{
		"egress-tcp4":     "ok outbound saw 10.244.1.17",
		"egress-half4":    "ok outbound saw 10.244.1.17",
		"egress-banner4":  "ok outbound saw 10.244.1.17",
		"egress-service4": "ok outbound saw 10.244.1.17",
		"ingress-tcp4":    "ok inbound saw 10.244.2.20",
		"ingress-half4":   "ok inbound saw 10.244.2.20",
		"ingress-ssh4":    "ok inbound saw 10.244.2.20",
		"pod-egress":      "ok outbound saw 10.244.1.17",
		"tunnelled":       "from members true, to members true",
	})
	want := map[string]map[string]string{"no member": past, "member": member, "member with the rules of mode ambient": with(member, map[string]string{
		"egress-tcp4":     "fails",
		"egress-half4":    "fails",
		"egress-banner4":  "fails",
		"egress-service4": "fails",
		"ingress-tcp4":    "fails inbound",
		"ingress-half4":   "fails inbound",
		"ingress-ssh4":    "fails inbound",
		"probe-guest":     "fails",
	})}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("outcomes (-want +got)\n%s", diff)
	}
}

// TestFirstAmbientAsAdmitted: a pod of the first form looks like one of today's, so that somebody must say off,
// for the VM or for the webhook. Then the pod stays as it is.
func TestFirstAmbientAsAdmitted(t *testing.T) {
	t.Parallel()
	root, err := tools.Root()
	do(t, err)
	b, err := os.ReadFile(filepath.Join(root, "test/corpus/pods/v1.0.1/ambient-label/pod.yaml"))
	do(t, err)
	for name, c := range map[string]struct {
		asked, configured plan.Mode
		mode              plan.Mode
		reason            decision.Reason
	}{
		"nothing said":   {"", "", plan.Ambient, decision.MasqueradeAmbient},
		"annotation off": {plan.Off, "", plan.Off, decision.OptedOut},
		"default off":    {"", plan.Off, plan.Off, decision.OptedOut},
	} {
		t.Run(name, func(t *testing.T) {
			var pod corev1.Pod
			do(t, yaml.Unmarshal(b, &pod))
			if c.asked != "" {
				pod.Annotations[annotations.Mode] = string(c.asked)
			}
			cfg := mutate.Config{Image: templates.Image{Name: "example.com/dataplane:test"}, DefaultMode: c.configured}
			adapted, report, errs := mutate.Apply(&pod, mutate.Facts{VMI: &kubevirt.VMI{Binding: kubevirt.BindingMasquerade}}, cfg)
			if report.Mode != c.mode || report.Reason != c.reason || len(errs) > 0 {
				t.Errorf("mode %s for %s, errors %v, want %s for %s", report.Mode, report.Reason, errs, c.mode, c.reason)
			}
			if diff := cmp.Diff(&pod, adapted); c.mode == plan.Off && diff != "" {
				t.Errorf("the pod was changed (-was +is)\n%s", diff)
			}
		})
	}
}

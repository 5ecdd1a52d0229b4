package netlab

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/meshvirt/meshvirt/pkg/decision"
	"github.com/meshvirt/meshvirt/pkg/kubevirt"
	"github.com/meshvirt/meshvirt/pkg/mesh"
	"github.com/meshvirt/meshvirt/pkg/mutate"
	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/templates"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/sidecar"
	"github.com/meshvirt/meshvirt/tools"
)

// reserved are the mesh's own ports, which KubeVirt keeps from passt.
const reserved = "~15000,~15001,~15004,~15006,~15008,~15009,~15020,~15021,~15053,~15090"

// processMember is what every guest behind a process has in the mesh, though we write no rule: it is an
// ordinary application of the pod. Its DNS is captured, whatever the protocol. Nobody can forge a sender.
var processMember = map[string]string{
	"egress-tcp4":          "ok outbound saw 10.244.1.17",
	"egress-banner4":       "ok outbound saw 10.244.1.17",
	"egress-service4":      "ok outbound saw 10.244.1.17",
	"egress-excluded-cidr": "ok outbound saw 10.244.1.17",
	"probe-sidecar":        "ok serving",
	"udp-out4":             "ok saw 10.244.1.17",
	"udp-in4":              "ok saw 10.244.2.20",
	"dns-udp":              "ok dns 192.0.2.153",
	"dns-tcp":              "ok dns 192.0.2.153",
	"icmp4":                "ok",
	"pod-egress":           "ok outbound saw 10.244.1.17",
	"attack-spoof":         "ok saw 10.244.1.17",
}

// passtMember is that with passt, by which the guest has the pod's addresses. To the guest, what comes from
// the pod's loopback comes from its gateway; passt knows no such address for Envoy's ::6.
var passtMember = with(processMember, map[string]string{
	"egress-tcp6":          "ok outbound saw fd00:10:244:1::11",
	"egress-half4":         "ok outbound saw 10.244.1.17",
	"egress-service6":      "ok outbound saw fd00:10:244:1::11",
	"ingress-tcp4":         "ok inbound saw 10.244.1.1",
	"ingress-tcp6":         "ok inbound saw ::6",
	"ingress-half4":        "ok inbound saw 10.244.1.1",
	"ingress-ssh4":         "ok inbound saw 10.244.1.1",
	"ingress-ssh6":         "ok inbound saw ::6",
	"probe-guest":          "ok inbound saw 10.244.1.1",
	"udp-out6":             "ok saw fd00:10:244:1::11",
	"udp-in6":              "ok saw fd00:10:244:2::20",
	"icmp6":                "ok",
	"pod-self":             "ok saw 10.244.1.1",
	"hairpin":              "ok saw 10.244.1.17", // does not leave the guest, whose address it is
	"attack-loopback":      "fails",
	"attack-passt-gateway": "ok serving", // docs/isolation.md
})

// oldPasst has known limits, that of Debian 12 (March 2023): it tells the guest that a connection was accepted
// only when the client has sent something, so that a server that speaks first waits for ever; it does
// not pass on that a direction ended before the other; it dials 127.0.0.1 for the guest.
var oldPasst = with(passtMember, map[string]string{
	"egress-half4":    "fails outbound",
	"ingress-ssh4":    "fails inbound",
	"ingress-ssh6":    "fails inbound",
	"attack-loopback": "ok serving syn-ack",
})

// slirpMember is that with slirp, which forwards IPv4 alone from outside.
var slirpMember = with(processMember, map[string]string{
	"egress-half4":         "ok outbound saw 10.244.1.17",
	"ingress-tcp4":         "ok inbound saw 10.0.2.2",
	"ingress-half4":        "ok inbound saw 10.0.2.2",
	"ingress-ssh4":         "ok inbound saw 10.0.2.2",
	"probe-guest":          "ok inbound saw 10.0.2.2",
	"pod-self":             "ok saw 10.244.1.17",
	"hairpin":              "ok saw 10.244.1.17", // the guest has an address of its own, and calls as a neighbour in the pod
	"attack-slirp-gateway": "ok serving",
})

// TestProcess boots a machine behind passt, as Debian 12 and 13 have it, and behind qemu's slirp, in pods as
// the webhook admits them. When Istio's rules are gone, the same traffic goes past the sidecar: it was Istio
// that took it, and nothing else.
func TestProcess(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		pod     string
		program func() ([]string, error) // nil: slirp
		dual    bool
		want    map[string]string
		path    string // of egress-banner4
		without map[string]string
	}{
		"passt of Debian 12": {
			"passt-istio-ports", func() ([]string, error) { return []string{"passt"}, nil }, true, oldPasst,
			"guest 10.244.1.17 -> passt -> sidecar :15001 (orig 10.244.2.20:22) -> eth0 -> peer (saw 10.244.1.17)",
			map[string]string{"ingress-tcp4": "ok saw 10.244.2.20", "ingress-ssh4": "fails"}, // so it is not the sidecar that has the limit
		},
		"passt of Debian 13": {
			"passt-istio-ports", tools.Passt, true, passtMember,
			"guest 10.244.1.17 -> passt -> sidecar :15001 (orig 10.244.2.20:22) -> eth0 -> peer (saw 10.244.1.17)",
			map[string]string{"ingress-tcp4": "ok saw 10.244.2.20", "ingress-ssh4": "ok saw 10.244.2.20"},
		},
		"passt of Debian 13, gateway not mapped": {
			"passt-istio-ports", func() ([]string, error) { p, err := tools.Passt(); return append(p, "--no-map-gw"), err }, true, map[string]string{
				"egress-tcp4": passtMember["egress-tcp4"], "ingress-tcp4": passtMember["ingress-tcp4"], "ingress-ssh4": passtMember["ingress-ssh4"],
				"attack-passt-gateway": "fails outbound", // like any other destination outside
				"attack-loopback":      "fails",
			},
			"guest 10.244.1.17 -> passt -> sidecar :15001 (orig 10.244.2.20:22) -> eth0 -> peer (saw 10.244.1.17)",
			map[string]string{"ingress-tcp4": "ok saw 10.244.2.20"},
		},
		"slirp": {
			"slirp-istio", nil, false, slirpMember,
			"guest 10.0.2.15 -> slirp -> sidecar :15001 (orig 10.244.2.20:22) -> eth0 -> peer (saw 10.244.1.17)",
			map[string]string{"ingress-tcp4": "ok saw 10.244.2.20", "ingress-ssh4": "ok saw 10.244.2.20"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			pod, vmi := admitProcess(t, c.pod)
			l := newLab(t, Options{DualStack: c.dual, Pod: pod, Timeout: passtPatience})
			rules, err := l.IstioInitContainer(t.Context(), NFT, *named(pod.Spec.InitContainers, "istio-init"))
			do(t, err)
			if c.program == nil {
				var tcp []uint16
				for _, r := range vmi.TCP {
					tcp = append(tcp, r.First)
				}
				do(t, l.StartSlirp(t.Context(), tcp, []uint16{vmi.UDP[0].First}))
			} else {
				program, err := c.program()
				do(t, err)
				tcp := reserved
				for _, r := range vmi.TCP {
					tcp += fmt.Sprintf(",%d-%d", r.First, r.Last)
				}
				do(t, l.StartPasst(t.Context(), program, tcp, fmt.Sprint(vmi.UDP[0].First)))
			}
			// Last, to show that its ports were left to it.
			do(t, l.StartSidecar(t.Context(), sidecar.Config{IPv6: rules.DualStack, DNS: rules.DNS}))
			wantEach(t, l, c.want)
			if got := strings.Join(l.Check(t.Context(), FlowNamed("egress-banner4")).Hops, " -> "); got != c.path {
				t.Errorf("path\n got %s\nwant %s", got, c.path)
			}
			_, err = l.RunInPod(t.Context(), "", "iptables-nft", "-t", "nat", "-F")
			do(t, err)
			wantEach(t, l, with(c.without, map[string]string{"egress-tcp4": "ok saw 10.244.1.17", "dns-udp": "ok 192.0.2.53", "dns-tcp": "ok 192.0.2.53"}))
		})
	}
}

// passtPatience is for a loaded machine, on which an emulated guest is slow.
const passtPatience = 8 * time.Second

// chances is how often a flow may be tried: on a loaded machine a connection to an emulated guest behind passt was
// seen to go unanswered now and then, and not on an idle one.
const chances = 4

// wantEach has the attacks last, for passt sends what comes in to the address that the guest has used last, be
// it forged. Before another chance the guest says something.
func wantEach(t *testing.T, l *Lab, want map[string]string) {
	t.Helper()
	for _, name := range slices.Backward(slices.Sorted(maps.Keys(want))) {
		outcome := want[name]
		f := FlowNamed(name)
		if strings.HasPrefix(outcome, "fails") {
			f.Timeout = 2 * time.Second
		}
		r := l.Check(t.Context(), f)
		for range chances - 1 {
			if r.Outcome() == outcome {
				break
			}
			l.Check(t.Context(), FlowNamed("udp-out4"))
			r = l.Check(t.Context(), f)
		}
		if r.Outcome() != outcome {
			t.Errorf("%s\n got outcome %q\nwant %q", r, r.Outcome(), outcome)
		}
	}
}

// admitProcess is the webhook's work on a recorded pod beside Istio. What somebody has left there of a
// bridge must go. The VM lists ports for the lab's flows, and a range that the mesh's are in.
func admitProcess(t *testing.T, recording string) (*corev1.Pod, *kubevirt.VMI) {
	t.Helper()
	root, err := tools.Root()
	do(t, err)
	dir := filepath.Join(root, "test/corpus/pods/v1.0.1", recording)
	b, err := os.ReadFile(filepath.Join(dir, "injected-1.22.8-classic.yaml"))
	do(t, err)
	var pod corev1.Pod
	do(t, yaml.Unmarshal(b, &pod))
	b, err = os.ReadFile(filepath.Join(dir, "vmi.yaml"))
	do(t, err)
	b, err = yaml.YAMLToJSON(b)
	do(t, err)
	vmi, err := kubevirt.ParseVMI(b)
	do(t, err)
	vmi.TCP, vmi.UDP = []plan.PortRange{plan.Port(SSHPort), plan.Port(HTTPPort), plan.Port(AppPort)}, []plan.PortRange{plan.Port(UDPPort)}
	if vmi.Binding == kubevirt.BindingPasst {
		vmi.TCP = append(vmi.TCP, plan.PortRange{First: 15000, Last: 15100})
	}
	leftovers := []string{mesh.AnnotationRerouteInterfaces, mesh.AnnotationKubevirtInterfaces}
	for _, key := range leftovers {
		pod.Annotations[key] = Bridge
	}
	c := named(pod.Spec.InitContainers, "istio-init")
	c.Args = append(c.Args, "-k", Bridge)
	c.Env = append(c.Env, corev1.EnvVar{Name: "ISTIO_META_DNS_CAPTURE", Value: "true"})
	if vmi.Binding == kubevirt.BindingPasst {
		c.Env = append(c.Env, corev1.EnvVar{Name: "ISTIO_DUAL_STACK", Value: "true"})
	}
	adapted, report, errs := mutate.Apply(&pod, mutate.Facts{VMI: vmi}, mutate.Config{Image: templates.Image{Name: "example.com/dataplane:test"}})
	if report.Mode != plan.Process || report.Reason != decision.ProcessBinding || len(errs) > 0 {
		t.Fatalf("report %s, errors %v", report, errs)
	}
	for _, key := range leftovers {
		if value, ok := adapted.Annotations[key]; ok {
			t.Errorf("annotation %s: %s is still there", key, value)
		}
	}
	if args := named(adapted.Spec.InitContainers, "istio-init").Args; slices.Contains(args, Bridge) {
		t.Errorf("istio-init has arguments %q, want none for %s", args, Bridge)
	}
	if n, was := len(adapted.Spec.InitContainers)+len(adapted.Spec.Containers), len(pod.Spec.InitContainers)+len(pod.Spec.Containers); n != was {
		t.Errorf("the pod has %d containers, want the %d that it had", n, was)
	}
	return adapted, vmi
}

func named(all []corev1.Container, name string) *corev1.Container {
	return &all[slices.IndexFunc(all, func(c corev1.Container) bool { return c.Name == name })]
}

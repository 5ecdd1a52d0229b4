package mesh

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/meshvirt/meshvirt/pkg/plan"
)

func TestKnownIssues(t *testing.T) {
	image := func(tag string) Input { return Input{Image: "docker.io/istio/proxyv2:" + tag} }
	lone := func(tag string) Input {
		return Input{Image: "docker.io/istio/proxyv2:" + tag, CNI: true, Annotations: map[string]string{AnnotationKubevirtInterfaces: "k6t-eth0"}}
	}
	both := lone("1.26.4")
	both.Annotations = map[string]string{AnnotationKubevirtInterfaces: "k6t-eth0", AnnotationRerouteInterfaces: "k6t-eth0"}
	init := lone("1.26.4")
	init.CNI = false
	asked := image("1.26.8")
	asked.Annotations = map[string]string{annotationInject: "true"}
	web := plan.Guest{TCP: []plan.PortRange{plan.Port(80)}}
	ports := func(p ...uint16) plan.Plan { return plan.Plan{Guest: web, Outbound: plan.Outbound{ExcludePorts: p}} }

	for _, c := range []struct {
		name string
		e    Evidence
		want []string
	}{
		{"before the range", Evidence{Input: lone("1.24.6")}, nil},
		{"first of 1.25", Evidence{Input: lone("1.25.0")}, []string{"LostKubevirtInterfaces"}},
		{"last of 1.25", Evidence{Input: lone("1.25.5-distroless")}, []string{"LostKubevirtInterfaces"}},
		{"in 1.26", Evidence{Input: lone("1.26.4")}, []string{"LostKubevirtInterfaces"}},
		{"mended in 1.26", Evidence{Input: lone("1.26.5")}, nil},
		{"in 1.27", Evidence{Input: lone("1.27.1")}, []string{"LostKubevirtInterfaces"}},
		{"mended in 1.27", Evidence{Input: lone("1.27.2")}, nil},
		{"a tag without patch", Evidence{Input: lone("1.26")}, nil},
		{"an unknown tag", Evidence{Input: lone("latest")}, nil},
		{"both annotations", Evidence{Input: both}, nil},
		{"with istio-init", Evidence{Input: init}, nil},
		{"restartPolicy, whatever the tag", Evidence{Input: image("custom"), RestartPolicy: true}, []string{"RestartPolicyMisplaced"}},
		{"image volume", Evidence{Input: image("1.22.8"), MixedVolumes: []string{"istio-token"}}, []string{"ImageVolumeMisplaced"}},
		{"port 22", Evidence{Input: image("1.12.9"), Mode: plan.Rules}, []string{"PortSSHExempt"}},
		{"port 22, left alone", Evidence{Input: image("1.12.9"), Mode: plan.Off}, nil},
		{"port 22 since 1.13", Evidence{Input: image("1.13.0"), Mode: plan.Rules}, nil},
		{"port 22, a tag without patch", Evidence{Input: image("1.9"), Mode: plan.Rules}, nil},
		{"port 22 in 0.7", Evidence{Input: image("0.7.1"), Mode: plan.Rules}, nil},
		{"native, KubeVirt asked", Evidence{Input: asked, Mode: plan.Native, Plan: ports()}, nil},
		{"native, all ports", Evidence{Input: asked, Mode: plan.Native}, []string{"NativeSSH"}},
		{"native, UDP", Evidence{Input: asked, Mode: plan.Native, Plan: plan.Plan{Guest: plan.Guest{UDP: []plan.PortRange{plan.Port(53)}}}}, []string{"NativeRefuses"}},
		{"native, an excluded port that is a range's", Evidence{Input: asked, Mode: plan.Native, Plan: plan.Plan{Guest: plan.Guest{TCP: []plan.PortRange{{First: 20, Last: 25}}}, Inbound: plan.Inbound{ExcludePorts: []uint16{21}}}}, []string{"NativeRefuses", "NativeSSH"}},
		{"native, KubeVirt not asked", Evidence{Input: image("1.26.8"), Mode: plan.Native}, []string{"KubeVirtIgnoresMesh"}},
		{"native, excluded port", Evidence{Input: asked, Mode: plan.Native, Plan: ports(15020, 3306)}, []string{"NativeIgnoresExclusions"}},
		{"native, istio-cni's default", Evidence{Input: asked, Mode: plan.Native, Plan: ports(15020)}, nil},
		{"native, excluded CIDR", Evidence{Input: asked, Mode: plan.Native, Plan: plan.Plan{Guest: web, Outbound: plan.Outbound{ExcludeCIDRs: prefixes("10.0.0.0/8")}}}, []string{"NativeIgnoresExclusions"}},
		{"rules, excluded port", Evidence{Input: asked, Mode: plan.Rules, Plan: ports(3306)}, nil},
		{"native in 1.0", Evidence{Input: Input{Image: "proxy_init:1.0.6", Annotations: asked.Annotations}, Mode: plan.Native, Plan: ports()}, []string{"NoReroute", "PortSSHExempt"}},
	} {
		var got []string
		for _, i := range KnownIssues(c.e) {
			got = append(got, i.Name)
		}
		slices.Sort(got)
		if diff := cmp.Diff(c.want, got, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
	}
	for _, i := range Issues {
		if i.Name == "" || i.What == "" || i.Fix == "" {
			t.Errorf("issue %+v lacks a text", i)
		}
		checkLength(t, i.What, i.Fix)
	}
}

// checkLength keeps warnings within what API servers promise to show
// (k8s.io/api/admission/v1, AdmissionResponse.Warnings).
func checkLength(t *testing.T, lines ...string) {
	t.Helper()
	for _, line := range lines {
		if len(line) > 256 {
			t.Errorf("%d characters, want 256 at most: %s", len(line), line)
		}
	}
}

func TestRecognise(t *testing.T) {
	consulOn := map[string]string{"consul.hashicorp.com/transparent-proxy-status": "enabled"}
	label := map[string]string{"istio.io/dataplane-mode": "ambient"}
	for _, c := range []struct {
		name      string
		t         Traces
		want      string
		redirects bool
	}{
		{"nothing", Traces{Containers: list("compute")}, "", false},
		{"Linkerd", Traces{Containers: list("linkerd-init", "compute", "linkerd-proxy")}, "linkerd", true},
		{"Linkerd by CNI", Traces{Containers: list("linkerd-network-validator", "compute")}, "linkerd", true},
		{"Kuma by CNI", Traces{Containers: list("kuma-validation", "compute", "kuma-sidecar")}, "kuma", true},
		{"Consul", Traces{Containers: list("consul-connect-inject-init", "consul-dataplane"), Annotations: consulOn}, "consul", true},
		{"Consul, explicit upstreams only", Traces{Containers: list("consul-dataplane")}, "consul", false},
		{"ambient by label", Traces{Labels: label}, "istio-ambient", true},
		{"ambient by namespace", Traces{NamespaceLabels: label}, "istio-ambient", true},
		{"ambient, pod left out", Traces{NamespaceLabels: label, Labels: map[string]string{"istio.io/dataplane-mode": "none"}}, "", false},
		{"ambient, enrolled", Traces{Annotations: map[string]string{"ambient.istio.io/redirection": "enabled"}}, "istio-ambient", true},
		{"a sidecar in an ambient namespace", Traces{NamespaceLabels: label, Containers: list("istio-proxy")}, "", false},
	} {
		o, redirects, ok := Recognise(c.t)
		if o.Name != c.want || redirects != c.redirects || ok != (c.want != "") {
			t.Errorf("%s: %q, redirects %t, want %q, %t", c.name, o.Name, redirects, c.want, c.redirects)
		}
	}
	// The advice knows whether KubeVirt stepped back already.
	for _, o := range Others {
		plain, asked := o.Advice(Traces{}), o.Advice(Traces{Annotations: map[string]string{annotationInject: "true"}})
		checkLength(t, slices.Concat(plain, asked)...)
		if a, b := strings.Join(plain, "\n"), strings.Join(asked, "\n"); a == b || !strings.Contains(a, annotationInject) {
			t.Errorf("%s: advice is the same with the VMI's annotation:\n%s", o.Name, a)
		}
	}
}

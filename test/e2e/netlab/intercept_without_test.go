package netlab

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/meshvirt/meshvirt/pkg/plan"
)

// TestInterceptedNeeds takes the rules of one reason after the other, and something fails every time.
func TestInterceptedNeeds(t *testing.T) {
	for why, want := range map[string]map[string]string{
		"": {"ingress-tcp4": seen["ingress-tcp4"], "ingress-ssh4": "ok saw 10.244.2.20", "probe-sidecar": "ok serving"},
		"the guest's reply is for the mesh's proxy": {"ingress-tcp4": "fails inbound", "ingress-tcp6": "fails inbound", "egress-tcp4": seen["egress-tcp4"]},
		"the mesh's policy route must not":          {"ingress-tcp4": "fails inbound", "ingress-tcp6": "fails inbound"},
		"the mesh's proxy lets it in":               {"ingress-tcp4": "fails inbound", "ingress-tcp6": "fails inbound"},
		"TCP comes in through the mesh":             {"ingress-tcp4": "fails inbound", "ingress-tcp6": "fails inbound"},
		"what the guest opens":                      {"egress-tcp4": noMesh["egress-tcp4"]},
		"an excluded port goes straight out":        {"egress-excluded-port": "ok outbound saw 10.244.1.17"},
		"the mesh must not take the port":           {"ingress-ssh4": "fails", "ingress-ssh6": "fails", "ingress-tcp4": seen["ingress-tcp4"]},
		"the mesh's note":                           {"probe-sidecar": "fails", "ingress-tcp4": seen["ingress-tcp4"]},
		"the mesh did not take the port":            {"ingress-ssh4": "fails", "ingress-ssh6": "fails", "ingress-tcp4": seen["ingress-tcp4"]},
		"an answer to the guest goes on":            {"egress-excluded-port": "fails", "egress-excluded-cidr": "fails", "egress-tcp4": seen["egress-tcp4"]},
	} {
		t.Run(why, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, Options{Timeout: patience, DualStack: true, Image: dataPlane(t)})
			startIntercepting(t, l, "1.29.6", NFT, "--dual-stack", "--redirect-dns", "-c", Bridge)
			p := listPorts(intercepted(plan.Rules))
			p.Inbound.ExcludePorts = []uint16{SSHPort}
			startMeshVirt(t, l, p)
			do(t, l.KubeVirt(t.Context(), "v1.9.0-noistio-ports-22-80-dual"), l.StartGuest(t.Context()))
			if why != "" {
				takeRules(t, l, why)
			}
			wantFlows(t, l, want)
		})
	}
}

// takeRules deletes our rules whose reason begins in this way.
func takeRules(t *testing.T, l *Lab, why string) {
	t.Helper()
	table, err := l.RunInPod(t.Context(), "", "nft", "-a", "list", "table", "inet", "meshvirt")
	do(t, err)
	var chain, script string
	for line := range strings.Lines(table) {
		if words := strings.Fields(line); len(words) > 1 && words[0] == "chain" {
			chain = words[1]
		}
		if _, handle, ok := strings.Cut(line, "# handle "); ok && strings.Contains(line, `comment "`+why) {
			script += "delete rule inet meshvirt " + chain + " handle " + handle
		}
	}
	if script == "" {
		t.Fatalf("no rule has the reason %q", why)
	}
	_, err = l.RunInPod(t.Context(), script, "nft", "-f", "-")
	do(t, err)
}

// TestInterceptedAbsent is what a masquerade VM has there without MeshVirt, in KubeVirt's Istio mode. Istio's
// own interface option (-k) is no way: inbound, the mark of Envoy's connection leads it to the pod when KubeVirt
// has translated it to the guest, and outbound, unless bridged packets are seen by the IP hooks, Istio takes the
// guest's connections for the pod's inbound ones. Mode native is refused for it.
func TestInterceptedAbsent(t *testing.T) {
	for name, c := range map[string]struct {
		args     []string
		bridgeNF string
		egress   string // of egress-tcp4
	}{
		"rerouted":                    {[]string{"-k", Bridge}, "1", "ok outbound saw 10.244.1.17"},
		"rerouted, without bridge-nf": {[]string{"-k", Bridge}, "0", "fails"},
		"excluded":                    {[]string{"-c", Bridge}, "1", "fails"},
		"neither":                     {nil, "0", "fails"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, Options{Timeout: patience, DualStack: true})
			do(t,
				l.Namespace().Sysctl("bridge/bridge-nf-call-iptables", c.bridgeNF),
				l.Namespace().Sysctl("bridge/bridge-nf-call-ip6tables", c.bridgeNF))
			startIntercepting(t, l, "1.29.6", NFT, append([]string{"--dual-stack"}, c.args...)...)
			do(t, l.KubeVirt(t.Context(), "v1.9.0-istio-noports-dual"), l.StartGuest(t.Context()))
			want := map[string]string{"egress-tcp4": c.egress}
			for _, name := range []string{"ingress-tcp4", "ingress-tcp6", "ingress-ssh4", "probe-guest", "udp-in4"} {
				want[name] = "fails"
			}
			for _, name := range slices.Sorted(maps.Keys(want)) {
				// How far a lost connection came is not of interest.
				if r := l.Check(t.Context(), FlowNamed(name)); r.Outcome() != want[name] && (want[name] != "fails" || r.OK) {
					t.Errorf("%s\n got outcome %q\nwant %q", r, r.Outcome(), want[name])
				} else {
					t.Log(r)
				}
			}
		})
	}
}

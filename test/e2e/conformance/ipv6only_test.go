package main

import (
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/istio"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/kubevirt"
)

// ipv6Only are the setups whose pod has no IPv4.
func ipv6Only(all []setup) []setup {
	return slices.DeleteFunc(slices.Clone(all), func(s setup) bool { return !s.ipv6Only })
}

// TestIPv6Only: recordings of pods of IPv6 alone meet each other and nothing else, and send no IPv4.
func TestIPv6Only(t *testing.T) {
	_, all := embedded(t)
	modes := map[plan.Mode]bool{}
	for _, s := range all {
		if s.mesh == sidecarMesh && s.istio.IPv6Only() != s.ipv6Only || (s.vmi.Name != "" && s.vmi.PodIP["v4"] == "") != s.ipv6Only {
			t.Errorf("%s: istio-init ran in a pod of IPv6 alone: %t, KubeVirt in one of %v", s, s.istio.IPv6Only(), s.vmi.PodIP)
		}
	}
	for _, s := range ipv6Only(all) {
		for _, mode := range s.modes() {
			modes[mode] = true
		}
		for _, f := range s.flows() {
			if f.family != "ipv6" || !f.To.Addr().Is6() || !s.served(f) {
				t.Errorf("%s: flow %s of %s to %s, served: %t", s, f.name, f.family, f.To, s.served(f))
			}
		}
	}
	for _, mode := range []plan.Mode{plan.Native, plan.Rules, plan.NATProxy, plan.TProxy, plan.Off} {
		if !modes[mode] {
			t.Errorf("no pod of IPv6 alone in mode %s", mode)
		}
	}
}

// TestIPv6OnlyUnpaired: what has no counterpart is named, whichever it is.
func TestIPv6OnlyUnpaired(t *testing.T) {
	vmi := func(addresses string) map[string]string {
		return map[string]string{"cases.json": `[{"case": "a", "kubevirt": "v1", "pod_ip": {` + addresses + `}}]`, "a.nft": "table ip6 nat {}"}
	}
	run := func(addresses string) map[string]string {
		return map[string]string{
			"1.40.0/cases.json":       `[{"case": "k", "args": ["-i", "*", "-b", "*"], "pod_addresses": ["` + addresses + `"]}]`,
			"1.40.0/k.iptables-save":  "*nat\nCOMMIT\n",
			"1.40.0/k.ip6tables-save": "*nat\nCOMMIT\n",
		}
	}
	files := func(all map[string]string) fstest.MapFS {
		fs := fstest.MapFS{}
		for name, text := range all {
			fs[name] = &fstest.MapFile{Data: []byte(text)}
		}
		return fs
	}
	const v4, v6 = `"v4": "10.0.0.1"`, `"v6": "fd00::1"`
	for name, c := range map[string]struct {
		vmi, run    map[string]string
		said        string
		ipv4, alone bool // setups that there are
	}{
		"VMI with IPv4, istio-init without": {vmi(v4), run("fd00::1/64"), "left out: istio 1.40.0 by nft and legacy, IPv6 alone: no VMI in such a pod was recorded", false, false},
		"istio-init with IPv4, VMI without": {vmi(v6), run("10.0.0.1/24"), "left out: KubeVirt v1, case a: no istio-init was recorded in a pod of IPv6 alone", false, false},
		"neither has IPv4":                  {vmi(v6), run("fd00::1/64"), "left out: istio 1.40.0 by nft and legacy: nothing was recorded", false, true},
		"both have IPv4":                    {vmi(v4), run("10.0.0.1/24"), "left out: istio 1.40.0 by nft and legacy, IPv6 alone: nothing was recorded", true, false},
	} {
		var out strings.Builder
		got, err := matrix(corpus{istio.Corpus{FS: files(c.run)}, istio.EmbeddedAmbient(), kubevirt.Corpus{FS: files(c.vmi)}}, &out)
		got = slices.DeleteFunc(got, func(s setup) bool { return s.mesh != sidecarMesh })
		alone := len(ipv6Only(got))
		if c.alone != (alone > 0) || c.ipv4 != (len(got) > alone) || !strings.Contains(out.String(), c.said+"\n") {
			t.Errorf("%s: %d pods, %d of them of IPv6 alone, %v; want IPv4 %t, IPv6 alone %t, and %q in\n%s", name, len(got), alone, err, c.ipv4, c.alone, c.said, &out)
		}
	}
}

package main

import (
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/meshvirt/meshvirt/test/e2e/netlab"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/istio"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/kubevirt"
)

// corpus are the recordings that the matrix is made of.
type corpus struct {
	istio    istio.Corpus
	ambient  istio.AmbientCorpus
	kubevirt kubevirt.Corpus
}

// openCorpus opens a directory of the layout
//
//	istio-iptables/<version>/{cases.json,<case>.args,<case>.iptables-save,...}
//	istio-ambient/<version>/{cases.json,<case>.iptables-save,...}
//	kubevirt-masquerade/{cases.json,<case>.nft}
//
// or, with an empty name, the recordings that come with the lab.
func openCorpus(dir string) (corpus, error) {
	if dir == "" {
		return corpus{istio.Embedded(), istio.EmbeddedAmbient(), kubevirt.Embedded()}, nil
	}
	for _, part := range []string{"istio-iptables", "istio-ambient", "kubevirt-masquerade"} {
		if info, err := os.Stat(filepath.Join(dir, part)); err != nil || !info.IsDir() {
			return corpus{}, fmt.Errorf("corpus %s: no directory %s, want istio-iptables, istio-ambient and kubevirt-masquerade", dir, part)
		}
	}
	part := func(name string) string { return filepath.Join(dir, name) }
	return corpus{
		istio.Corpus{FS: os.DirFS(part("istio-iptables"))},
		istio.AmbientCorpus{FS: os.DirFS(part("istio-ambient"))},
		kubevirt.Corpus{FS: os.DirFS(part("kubevirt-masquerade"))},
	}, nil
}

// sidecars are the recorded runs of istio-init of a version that the lab can repeat. What it leaves out
// it says on out.
func (c corpus) sidecars(version string, out io.Writer) ([]istio.Case, error) {
	cases, err := c.istio.Cases(version)
	if err != nil {
		return nil, err
	}
	var usable []istio.Case
	for _, k := range cases {
		if why := c.unusable(k); why != "" {
			fmt.Fprintf(out, "left out: istio %s, case %s: %s\n", version, k.Name, why)
			continue
		}
		usable = append(usable, k)
	}
	return usable, nil
}

// unusable says why a case is nothing for the lab; empty if it is something.
func (c corpus) unusable(k istio.Case) string {
	r, s, err := c.istio.Recorded(k)
	switch {
	case err != nil:
		return "" // its cells say so
	case k.Runs > 1:
		return fmt.Sprintf("the program was run %d times, which changes no rule of a pod that starts once", k.Runs)
	case s.SkipApply:
		return "the program was told to write no rules"
	case !s.Redirect && !s.TProxy:
		return "interception is neither by REDIRECT nor by TPROXY: Envoy gets nothing in"
	case r.Empty():
		return "there is no recording of its rules"
	}
	return ""
}

// guests are the recorded VMIs that the lab can repeat.
func (c corpus) guests(out io.Writer) ([]kubevirt.Case, error) {
	cases, err := c.kubevirt.Cases()
	if err != nil {
		return nil, fmt.Errorf("corpus: kubevirt-masquerade: %w", err)
	}
	var usable []kubevirt.Case
	for _, k := range cases {
		why := ""
		_, err := c.kubevirt.Rules(k.Name)
		switch {
		case k.Mesh != "":
			why = "it has the mesh's rules too, which every cell brings itself"
		case err != nil:
			why = err.Error()
		case k.PodIP["v4"] == "" && k.PodIP["v6"] == "":
			why = "it does not tell the pod's addresses"
		}
		if why != "" {
			fmt.Fprintf(out, "left out: KubeVirt %s, case %s: %s\n", k.Release, k.Name, why)
			continue
		}
		usable = append(usable, k)
	}
	if len(usable) == 0 {
		return nil, fmt.Errorf("corpus: kubevirt-masquerade has no recording that the lab can repeat")
	}
	return usable, nil
}

// kubevirtRules are a recording's, with the lab's addresses in place of those of the recorded pod.
func (c corpus) kubevirtRules(k kubevirt.Case) (string, error) {
	rules, err := c.kubevirt.Rules(k.Name)
	if err != nil {
		return "", err
	}
	to := map[string]netip.Addr{k.PodIP["v4"]: netlab.PodIP4, k.PodIP["v6"]: netlab.PodIP6, k.BridgeIP["v4"]: netlab.BridgeIP4, k.BridgeIP["v6"]: netlab.BridgeIP6}
	for version, guest := range map[string]netip.Addr{"v4": netlab.GuestIP4, "v6": netlab.GuestIP6} {
		if gateway, err := netip.ParseAddr(k.BridgeIP[version]); err == nil {
			to[gateway.Next().String()] = guest // KubeVirt gives the guest the address after
		}
	}
	return readdress(rules, to), nil
}

// istioRules gives rules that were recorded with other name servers the lab's.
func istioRules(k istio.Case, r istio.Rules) istio.Rules {
	to := map[string]netip.Addr{}
	for line := range strings.Lines(k.ResolvConf) {
		words := strings.Fields(line)
		if len(words) != 2 || words[0] != "nameserver" {
			continue
		}
		switch a, err := netip.ParseAddr(words[1]); {
		case err != nil:
		case a.Is4():
			to[words[1]] = netlab.DNSIP4
		default:
			to[words[1]] = netlab.DNSIP6
		}
	}
	for _, text := range []*string{&r.IPv4, &r.IPv6, &r.NFT} {
		*text = readdress(*text, to)
	}
	return r
}

// address is what looks like one, alone or before a prefix length.
var address = regexp.MustCompile(`[0-9a-fA-F.:]+`)

// readdress replaces whole addresses.
func readdress(text string, to map[string]netip.Addr) string {
	return address.ReplaceAllStringFunc(text, func(word string) string {
		if a, ok := to[word]; ok {
			return a.String()
		}
		return word
	})
}

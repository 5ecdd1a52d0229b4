package istio

import (
	"embed"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"github.com/meshvirt/meshvirt/test/e2e/netlab/corpus"
)

// The policy route that istio-cni makes in each pod of an ambient mesh, for both families: a packet with
// the mark, compared under the mask, is delivered to the pod whatever its destination.
const (
	AmbientMark         = 0x111
	AmbientMask         = 0xfff
	AmbientTable        = 100
	AmbientRulePriority = 32764
)

// ambient holds recordings: <version>/inpod-<case>.{iptables-save,ip6tables-save,nft}.
//
//go:embed ambient
var ambient embed.FS

// ambientVersion is the one version that was recorded.
const ambientVersion = "1.29.6"

// AmbientOptions are istio-cni's settings for a pod, and the pod's own.
type AmbientOptions struct {
	// DualStack writes rules for IPv6 too.
	DualStack bool
	// NoDNS leaves DNS alone, which istio-cni else captures.
	NoDNS bool
	// Reroute is the annotation istio.io/reroute-virtual-interfaces: k6t-eth0.
	Reroute bool
	// Native writes nftables without iptables.
	Native bool
}

// Ambient gives the rules that istio-cni leaves in a pod of an ambient mesh. Where a case was recorded
// with the rerouted interface only, the rules that name it are taken out for one without (tested).
func Ambient(o AmbientOptions) (Rules, error) {
	k := AmbientCase{Version: ambientVersion, Virtual: "k6t-eth0", DNS: !o.NoDNS, Native: o.Native, DualStack: o.DualStack}
	switch {
	case o.Native && (o.NoDNS || o.DualStack), o.NoDNS && (o.DualStack || o.Reroute):
		return Rules{}, fmt.Errorf("istio %s: rules of an ambient pod were not recorded with %+v", ambientVersion, o)
	case o.Native:
		k.Name = "inpod-native-nft-reroute-k6t-eth0"
	case o.NoDNS:
		k.Name = "inpod-nodns"
	case o.DualStack:
		k.Name = "inpod-dual-reroute-k6t-eth0"
	default:
		k.Name = "inpod-reroute-k6t-eth0"
	}
	return EmbeddedAmbient().Rules(k, o.Reroute)
}

// AmbientCorpus is a directory of recordings of pods in an ambient mesh: <version>/cases.json, with the
// settings of each case, and <version>/<case>.{iptables-save,ip6tables-save,nft}.
type AmbientCorpus struct{ FS fs.FS }

// EmbeddedAmbient are the recordings that come with the lab.
func EmbeddedAmbient() AmbientCorpus { return AmbientCorpus{corpus.Embedded(ambient, "ambient")} }

// An AmbientCase is one recorded enrolment.
type AmbientCase struct {
	Version, Name          string
	DNS, Native, DualStack bool
	Virtual                string   // the interface of istio.io/reroute-virtual-interfaces, if any
	Unknown                []string // settings that nobody here knows
}

// Versions lists the recorded versions, the oldest first.
func (c AmbientCorpus) Versions() ([]string, error) { return versions(c.FS) }

// Cases lists what was recorded of a version.
func (c AmbientCorpus) Cases(version string) ([]AmbientCase, error) {
	type indexed struct {
		Name     string   `json:"case"`
		Settings []string `json:"settings"`
	}
	list, err := corpus.Cases[indexed](c.FS, version+"/cases.json")
	if err != nil {
		return nil, err
	}
	var all []AmbientCase
	for _, e := range list {
		a := AmbientCase{Version: version, Name: e.Name}
		for _, s := range e.Settings {
			key, value, _ := strings.Cut(s, "=")
			switch key {
			case "dns":
				a.DNS = true
			case "nft":
				a.Native = true
			case "ipv6":
				a.DualStack = true
			case "vif":
				a.Virtual = value
			default:
				a.Unknown = append(a.Unknown, s)
			}
		}
		all = append(all, a)
	}
	return all, nil
}

// Rules gives the rules of a case as recorded or, if the interface is not to be rerouted, those that are left
// without the annotation (tested).
func (c AmbientCorpus) Rules(k AmbientCase, reroute bool) (Rules, error) {
	r := Rules{Version: k.Version, DualStack: k.DualStack, DNS: k.DNS}
	for _, f := range []struct {
		text *string
		ext  string
		want bool
	}{{&r.NFT, "nft", k.Native}, {&r.IPv4, "iptables-save", !k.Native}, {&r.IPv6, "ip6tables-save", !k.Native && k.DualStack}} {
		if !f.want {
			continue
		}
		b, err := fs.ReadFile(c.FS, path.Join(k.Version, k.Name+"."+f.ext))
		if err != nil {
			return Rules{}, fmt.Errorf("istio %s: %w", k.Version, err)
		}
		for line := range strings.Lines(string(b)) {
			if reroute || k.Virtual == "" || !strings.Contains(line, k.Virtual) {
				*f.text += line
			}
		}
	}
	return r, nil
}

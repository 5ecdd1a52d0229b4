package istio

import (
	"embed"
	"fmt"
	"path"
	"strings"
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
	r := Rules{Version: ambientVersion, DualStack: o.DualStack, DNS: !o.NoDNS}
	var base string
	switch {
	case o.Native && (o.NoDNS || o.DualStack), o.NoDNS && (o.DualStack || o.Reroute):
		return Rules{}, fmt.Errorf("istio %s: rules of an ambient pod were not recorded with %+v", ambientVersion, o)
	case o.Native:
		base = "inpod-native-nft-reroute-k6t-eth0"
	case o.NoDNS:
		base = "inpod-nodns"
	case o.DualStack:
		base = "inpod-dual-reroute-k6t-eth0"
	default:
		base = "inpod-reroute-k6t-eth0"
	}
	for _, f := range []struct {
		text *string
		ext  string
		want bool
	}{{&r.NFT, "nft", o.Native}, {&r.IPv4, "iptables-save", !o.Native}, {&r.IPv6, "ip6tables-save", o.DualStack}} {
		if !f.want {
			continue
		}
		b, err := ambient.ReadFile(path.Join("ambient", ambientVersion, base+"."+f.ext))
		if err != nil {
			return Rules{}, fmt.Errorf("istio %s: %w", ambientVersion, err)
		}
		for line := range strings.Lines(string(b)) {
			if o.Reroute || !strings.Contains(line, "k6t-eth0") {
				*f.text += line
			}
		}
	}
	return r, nil
}

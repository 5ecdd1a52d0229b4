package main

import (
	"fmt"
	"regexp"

	"github.com/meshvirt/meshvirt/test/e2e/netlab/istio"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/kubevirt"
)

// kind are recorded VMIs for which KubeVirt has written the same rules. What becomes of a flow cannot
// depend on which of them it is, so they take turns.
type kind []kubevirt.Case

func (k kind) at(turn int) kubevirt.Case { return k[turn%len(k)] }

// kinds sorts the recorded VMIs: those that every version of the mesh meets (with and without the annotation
// of Istio's, with and without ports, in pods with IPv6 where there is a choice), and the others.
func (c corpus) kinds(vmis []kubevirt.Case) (common, rare []kind) {
	byRules := map[string]int{}
	var all []kind
	for _, v := range vmis {
		rules, _ := c.kubevirtRules(v) // guests has read them
		key := fmt.Sprint(v.Istio, v.Ports, v.Ranges, counters.ReplaceAllString(rules, ""))
		i, found := byRules[key]
		if !found {
			i = len(all)
			byRules[key], all = i, append(all, nil)
		}
		all[i] = append(all[i], v)
	}
	best := map[string]int{}
	for i, k := range all {
		v := k[0]
		if v.Migration || len(v.Ranges) > 0 {
			continue
		}
		key := fmt.Sprint(v.Istio, len(v.Ports) > 0)
		if j, found := best[key]; !found || all[j][0].PodIP["v6"] == "" && v.PodIP["v6"] != "" {
			best[key] = i
		}
	}
	for i, k := range all {
		if v := k[0]; best[fmt.Sprint(v.Istio, len(v.Ports) > 0)] == i && !v.Migration && len(v.Ranges) == 0 {
			common = append(common, k)
		} else {
			rare = append(rare, k)
		}
	}
	return common, rare
}

// counters in recorded rules are noise.
var counters = regexp.MustCompile(`counter packets \d+ bytes \d+ `)

// firsts tells who was the first.
type firsts map[string]string

func (f firsts) add(what, who string) (first string) {
	if _, found := f[what]; !found {
		f[what] = who
	}
	return f[what]
}

// essence is all of a case on which the outcome of a flow can depend.
func (c corpus) essence(k istio.Case) string {
	r, told, err := c.istio.Recorded(k)
	text := comments.ReplaceAllString(r.IPv4+r.IPv6+r.NFT, "")
	return fmt.Sprintf("%+v %v %t %s", told, err, k.IPv6Only(), text)
}

// comments of iptables-save have the time of day.
var comments = regexp.MustCompile(`(?m)^#.*\n`)

// A way is how Istio intercepts: by its own nftables or by iptables, inbound by TPROXY or REDIRECT, and whether
// in a pod of IPv6 alone.
type way struct{ native, tproxy, ipv6 bool }

var ways = []way{
	{}, {native: true}, {tproxy: true}, {native: true, tproxy: true},
	{ipv6: true}, {ipv6: true, native: true}, {ipv6: true, tproxy: true}, {ipv6: true, native: true, tproxy: true},
}

func (c corpus) wayOf(k istio.Case) way {
	_, s, _ := c.istio.Recorded(k) // what cannot be read is found among those by iptables, to say so in its cells
	return way{s.Native, s.TProxy, k.IPv6Only()}
}

func (w way) String() (s string) {
	if w.tproxy {
		s += ", TPROXY"
	}
	if w.ipv6 {
		s += ", IPv6 alone"
	}
	return s
}

// richness is how much of what can go wrong a case has: families, then DNS.
func (c corpus) richness(k istio.Case) int {
	r, s, err := c.istio.Recorded(k)
	n := 0
	for i, has := range []bool{len(s.Virtual) > 0, len(s.ExcludeCIDRs) > 0, s.InboundAll, s.OutboundAll, s.DNS, r.DualStack} {
		if has && err == nil {
			n += 1 << i
		}
	}
	return n
}

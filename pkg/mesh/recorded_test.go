package mesh

import (
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// What a Capture says is what the rules say that the real program wrote.
func TestCaptureAgreesWithRecordedRules(t *testing.T) {
	compared := 0
	for _, r := range runs(t) {
		c, err := ReadIstio(r.input())
		if err != nil {
			t.Errorf("%s: %v", r, err)
			continue
		}
		if native := strings.HasPrefix(r.Case, "native-nft"); native != c.NativeNFTables {
			t.Errorf("%s: native nftables is %t", r, c.NativeNFTables)
		}
		if dual := r.Rules6 > 0 && r.Case != "ipv6-only"; dual != c.DualStack && !c.NativeNFTables {
			t.Errorf("%s: dual stack is %t, but there are %d rules for IPv6", r, c.DualStack, r.Rules6)
		}
		if len(r.Rules) == 0 || r.Case == "ipv6-only" {
			continue
		}
		compared++
		if diff := cmp.Diff(readRules(t, r.Rules), facts(c), cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%s (-rules +capture):\n%s", r, diff)
		}
	}
	if compared < 130 {
		t.Errorf("compared %d runs with their rules, want 130 or more", compared)
	}
}

// readRules collects what IPv4 rules of iptables-save say, as sorted "fact value" lines.
func readRules(t *testing.T, rules []string) []string {
	t.Helper()
	patterns := []struct{ fact, pattern string }{
		{"outbound port", `^-t nat -A ISTIO_REDIRECT .* --to-ports (\d+)$`},
		{"inbound port", `^-t nat -A ISTIO_IN_REDIRECT .* --to-ports (\d+)$`},
		{"inbound TPROXY to", `^-t mangle -A ISTIO_TPROXY .* --on-port (\d+) `},
		{"uid", `^-t nat -A ISTIO_OUTPUT -m owner --uid-owner (\d+) -j RETURN$`},
		{"gid", `^-t nat -A ISTIO_OUTPUT -m owner --gid-owner (\d+) -j RETURN$`},
		{"inbound without", `^-t (?:nat|mangle) -A ISTIO_INBOUND -p tcp -m tcp --dport (\d+) -j RETURN$`},
		{"inbound of", `^-t (?:nat|mangle) -A ISTIO_INBOUND -p tcp -m tcp --dport (\d+) -j ISTIO_(?:IN_REDIRECT|TPROXY)$`},
		{"inbound of", `^-t (?:nat|mangle) -A ISTIO_INBOUND (-p tcp) -j ISTIO_(?:IN_REDIRECT|TPROXY)$`},
		{"outbound without port", `^-t nat -A ISTIO_OUTPUT -p tcp -m tcp --dport (\d+) -j RETURN$`},
		{"outbound without", `^-t nat -A ISTIO_OUTPUT -d (\S+) -j RETURN$`},
		{"outbound port of", `^-t nat -A ISTIO_OUTPUT -p tcp -m tcp --dport (\d+) -j ISTIO_REDIRECT$`},
		{"outbound of", `^-t nat -A ISTIO_OUTPUT -d (\S+) -j ISTIO_REDIRECT$`},
		{"outbound of", `^-t nat -A ISTIO_OUTPUT (-j) ISTIO_REDIRECT$`},
		{"left alone", `^-t nat -A OUTPUT -o (\S+) -j RETURN$`},
		{"rerouted", `^-t nat -A PREROUTING (?:-d \S+ )?-i (\S+) -j ISTIO_REDIRECT$`},
		{"dns of", `^-t nat -A (?:OUTPUT|ISTIO_OUTPUT|ISTIO_OUTPUT_DNS) (?:-d (\S+) )?-p udp -m udp --dport 53 -j REDIRECT --to-ports 15053$`},
		{"drop", `^-t mangle -A PREROUTING .* --ctstate (INVALID) -j (?:ISTIO_)?DROP$`},
	}
	found := map[string]bool{}
	for _, p := range patterns {
		exp := regexp.MustCompile(p.pattern)
		for _, rule := range rules {
			if m := exp.FindStringSubmatch(rule); m != nil {
				value := m[1]
				if value == "" || value == "-p tcp" || value == "-j" {
					value = "all"
				}
				found[p.fact+" "+value] = true
			}
		}
	}
	delete(found, "outbound without 127.0.0.1/32") // every pod has it
	return slices.Sorted(maps.Keys(found))
}

// facts are the lines that readRules should find for c.
func facts(c Capture) []string {
	found := map[string]bool{}
	add := func(fact string, values ...string) {
		for _, v := range values {
			found[fact+" "+v] = true
		}
	}
	ports := func(ps ...uint16) []string {
		var all []string
		for _, p := range ps {
			all = append(all, strconv.Itoa(int(p)))
		}
		return all
	}
	cidrs := func(ps []netip.Prefix) []string {
		var all []string
		for _, p := range ps {
			if p.Addr().Is4() {
				all = append(all, p.String())
			}
		}
		return all
	}
	add("outbound port", ports(c.OutboundPort)...)
	add("inbound port", ports(c.InboundPort)...)
	add("uid", fmt.Sprint(c.UID))
	add("gid", fmt.Sprint(c.GID))
	add("inbound without", ports(c.TunnelPort)...)
	if c.Interception == InterceptionTPROXY {
		add("inbound TPROXY to", ports(c.InboundPort)...)
	}
	if c.InboundAll {
		add("inbound of", "all")
		add("inbound without", ports(c.ExcludeInboundPorts...)...)
	}
	add("inbound of", ports(c.IncludeInboundPorts...)...)
	add("outbound without port", ports(c.ExcludeOutboundPorts...)...)
	add("outbound without", cidrs(c.ExcludeOutboundCIDRs)...)
	add("outbound port of", ports(c.IncludeOutboundPorts...)...)
	add("outbound of", cidrs(c.IncludeOutboundCIDRs)...)
	if c.OutboundAll {
		add("outbound of", "all")
	}
	add("left alone", c.ExcludeInterfaces...)
	add("rerouted", c.RerouteInterfaces...)
	if c.DNS != nil {
		add("dns of", map[bool]string{true: "all", false: "10.96.0.10/32"}[c.DNS.All])
	}
	if c.DropInvalid {
		add("drop", "INVALID")
	}
	return slices.Sorted(maps.Keys(found))
}

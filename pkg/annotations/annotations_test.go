package annotations

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/meshvirt/meshvirt/pkg/plan"
)

var compareAddrs = []cmp.Option{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
}

func TestParse(t *testing.T) {
	got, warnings, errs := Parse(map[string]string{
		Mode:                 "nat-proxy",
		Interfaces:           "k6t-eth0, k6t-net1",
		GuestAddresses:       "fd10:0:2::2,10.0.2.2",
		ExcludeOutboundCIDRs: "10.96.0.1/30, 192.0.2.1,fd00::/8",
		ExcludeOutboundPorts: "3306,5432",
		IncludeOutboundCIDRs: "10.0.0.0/8",
		ExcludeInboundPorts:  " 22 ",
		Watch:                "true",
		Inject:               "true",
		"app":                "web",
	}, Path)
	want := Settings{
		Mode:                 plan.NATProxy,
		Interfaces:           []string{"k6t-eth0", "k6t-net1"},
		GuestIPv4:            netip.MustParseAddr("10.0.2.2"),
		GuestIPv6:            netip.MustParseAddr("fd10:0:2::2"),
		ExcludeOutboundCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/30"), netip.MustParsePrefix("192.0.2.1/32"), netip.MustParsePrefix("fd00::/8")},
		ExcludeOutboundPorts: []uint16{3306, 5432},
		IncludeOutbound:      &CIDRs{List: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}},
		ExcludeInboundPorts:  []uint16{22},
		Watch:                WatchTrue,
	}
	if diff := cmp.Diff(want, got, compareAddrs...); diff != "" || len(warnings)+len(errs) > 0 {
		t.Errorf("warnings %q, errors %v, settings (-want +got)\n%s", warnings, errs, diff)
	}
}

func TestParseNothing(t *testing.T) {
	got, warnings, errs := Parse(map[string]string{"sidecar.istio.io/inject": "true", Status: "{}", Undo: "{}"}, Path)
	if diff := cmp.Diff(Settings{Mode: plan.Auto, Watch: WatchAuto}, got, compareAddrs...); diff != "" || len(warnings)+len(errs) > 0 {
		t.Errorf("warnings %q, errors %v, settings (-want +got)\n%s", warnings, errs, diff)
	}
}

func TestParseEmptyAndWildcard(t *testing.T) {
	for v, want := range map[string]CIDRs{"*": {All: true}, "": {}} {
		s, _, errs := Parse(map[string]string{IncludeOutboundCIDRs: v}, Path)
		if len(errs) > 0 || s.IncludeOutbound == nil {
			t.Fatalf("%q: %v, errors %v", v, s.IncludeOutbound, errs)
		}
		if diff := cmp.Diff(want, *s.IncludeOutbound, compareAddrs...); diff != "" {
			t.Errorf("%q (-want +got)\n%s", v, diff)
		}
	}
}

// Every kind of malformed value is refused with the key, the value and what is wanted.
func TestParseRefuses(t *testing.T) {
	for _, c := range []struct{ key, value, want string }{
		{Mode, "teleport", "want one of auto, native, rules, nat-proxy, tproxy, ambient, process, off"},
		{Mode, "", "want one of"},
		{Mode, "Rules", "want one of"},
		{Interfaces, "", "want interface names"},
		{Interfaces, "k6t-eth0,", `"" is no interface name`},
		{Interfaces, "much-too-long-name", "no interface name"},
		{Interfaces, "eth0,eth0", "twice"},
		{GuestAddresses, "10.0.2", `"10.0.2" is no address`},
		{GuestAddresses, "10.0.2.2/24", "no address"},
		{GuestAddresses, "10.0.2.2,10.0.2.3", "second of its family"},
		{GuestAddresses, "127.0.0.1", "cannot be a guest's address"},
		{GuestAddresses, "fe80::1%eth0", "no address"},
		{GuestAddresses, "", "want an IPv4 address"},
		{ExcludeOutboundCIDRs, "10.0.0.0/40", `"10.0.0.0/40" is no CIDR`},
		{ExcludeOutboundCIDRs, "*", "no CIDR"},
		{ExcludeOutboundCIDRs, "10.0.0.0/8,,", `"" is no CIDR`},
		{ExcludeOutboundCIDRs, "::ffff:10.0.0.0/104", "IPv6 form"},
		{ExcludeOutboundPorts, "70000", `"70000" is no port`},
		{ExcludeOutboundPorts, "0", "no port"},
		{ExcludeOutboundPorts, "http", "no port"},
		{ExcludeOutboundPorts, "80;443", "no port"},
		{ExcludeInboundPorts, "-1", "no port"},
		{ExcludeInboundPorts, "22,", `"" is no port`},
		{IncludeOutboundCIDRs, "*,10.0.0.0/8", `"*" is no CIDR`},
		{IncludeOutboundCIDRs, "ten", "no CIDR"},
		{Watch, "yes", `want "auto", "true" or "false"`},
		{Inject, "yes", `want "true" or "false"`},
	} {
		_, _, errs := Parse(map[string]string{c.key: c.value}, Path)
		if len(errs) != 1 {
			t.Errorf("%s=%q: errors %v, want one", c.key, c.value, errs)
			continue
		}
		for _, want := range []string{"metadata.annotations[" + c.key + "]", `"` + c.value + `"`, c.want} {
			if !strings.Contains(errs[0].Error(), want) {
				t.Errorf("%s=%q: error %q, want %q in it", c.key, c.value, errs[0], want)
			}
		}
	}
}

func TestParseNamesEveryBadKeyAtOnce(t *testing.T) {
	bad := map[string]string{}
	for _, k := range Keys {
		bad[k.Name] = "/"
	}
	_, _, errs := Parse(bad, Path)
	if len(errs) != len(Keys) {
		t.Errorf("%d errors for %d bad keys: %v", len(errs), len(Keys), errs)
	}
}

func TestParseWarnsOfUnknownKeys(t *testing.T) {
	_, warnings, errs := Parse(map[string]string{Domain + "exclude-outbound-port": "80"}, Path)
	if len(errs) != 0 || len(warnings) != 1 || !strings.Contains(warnings[0], "exclude-outbound-port is unknown") || !strings.Contains(warnings[0], ExcludeOutboundPorts) {
		t.Errorf("warnings %q, errors %v", warnings, errs)
	}
}

func TestExamplesAreValid(t *testing.T) {
	for _, k := range Keys {
		if _, _, errs := Parse(map[string]string{k.Name: k.Example}, Path); len(errs) > 0 {
			t.Errorf("%s: example %q: %v", k.Name, k.Example, errs)
		}
	}
}

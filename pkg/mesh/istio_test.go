package mesh

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/meshvirt/meshvirt/pkg/plan"
)

var (
	equal = cmp.Options{cmpopts.EquateEmpty(), cmpopts.EquateComparable(netip.Prefix{})}
	// defaults is a pod without any wish, in releases that exempt no port of their own accord.
	defaults = Capture{
		OutboundPort: 15001, InboundPort: 15006, TunnelPort: 15008, UID: 1337, GID: 1337,
		Interception: InterceptionRedirect, OutboundAll: true, InboundAll: true,
		ExcludeInboundPorts: []uint16{15090, 15021, 15020}, OwnPorts: []uint16{15008, 15020, 15021, 15090},
	}
)

func with(changes ...func(*Capture)) Capture {
	c := defaults
	c.ExcludeInboundPorts = slices.Clone(c.ExcludeInboundPorts)
	for _, change := range changes {
		change(&c)
	}
	return c
}

func tproxy(c *Capture) { c.Interception, c.TProxyMark = InterceptionTPROXY, 1337 }

func prefixes(all ...string) []netip.Prefix {
	var ps []netip.Prefix
	for _, s := range all {
		ps = append(ps, netip.MustParsePrefix(s))
	}
	return ps
}

// Expectations written by hand from the recorded rules.
func TestReadIstioRuns(t *testing.T) {
	k := func(c *Capture) { c.RerouteInterfaces = []string{"k6t-eth0"} }
	excluded := func(ports ...uint16) func(*Capture) {
		return func(c *Capture) { c.ExcludeInboundPorts = append(c.ExcludeInboundPorts, ports...) }
	}
	dns := func(all bool) func(*Capture) {
		return func(c *Capture) { c.DNS = &plan.DNS{Port: 15053, All: all} }
	}
	exclusions := func(c *Capture) {
		c.ExcludeOutboundCIDRs = prefixes("10.96.0.0/12", "192.168.0.0/16")
		c.ExcludeOutboundPorts = []uint16{3306, 6379}
		c.ExcludeInterfaces = []string{"net1"}
	}
	both := func(c *Capture) {
		c.ExcludeOutboundCIDRs = prefixes("10.96.0.1/32", "fd00:10:96::1/128")
	}
	dual := func(c *Capture) { c.DualStack = true }
	native := func(c *Capture) { c.NativeNFTables = true }
	want := map[string]Capture{
		"1.31.0-rc.0/default":              with(),
		"1.31.0-rc.0/run-twice":            with(k),
		"1.31.0-rc.0/exclusions":           with(exclusions, excluded(22, 5900, 49152, 49153)),
		"1.11.8/exclusions":                with(exclusions, excluded(22, 5900, 49152, 49153)),
		"1.11.8/default":                   with(excluded(22)),
		"1.18.7/default":                   with(),
		"1.24.6/dns-env":                   with(dns(false)),
		"1.29.6/dns-capture-all":           with(k, dns(true)),
		"1.18.7/dual-stack-env-dns":        with(k, both, dns(false)),
		"1.22.8/dual-stack-env-dns":        with(k, both, dns(false), dual),
		"1.18.7/dual-stack-flag":           with(k, dual),
		"1.26.8/drop-invalid":              with(k, func(c *Capture) { c.DropInvalid = true }),
		"1.31.0-rc.0/native-nft-dns":       with(k, dns(false), native),
		"1.31.0-rc.0/native-nft-tproxy-k":  with(k, native, tproxy),
		"1.31.0-rc.0/cni-validation-only":  with(),
		"1.31.0-rc.0/tproxy-k":             with(k, excluded(22), tproxy),
		"1.31.0-rc.0/outbound-none":        with(func(c *Capture) { c.OutboundAll = false }),
		"1.31.0-rc.0/inbound-none":         with(k, func(c *Capture) { c.InboundAll = false }),
		"1.11.8/inbound-none":              with(k, func(c *Capture) { c.InboundAll = false }),
		"1.31.0-rc.0/mode-none":            with(func(c *Capture) { c.InboundAll, c.OutboundAll, c.Interception = false, false, InterceptionNone }),
		"1.22.8/include-lists-k":           with(k, func(c *Capture) { c.OutboundAll, c.IncludeOutboundCIDRs = false, prefixes("10.96.0.0/12") }, include),
		"1.31.0-rc.0/native-nft-ipv6-only": with(k, native),
	}
	for _, r := range runs(t) {
		w, ok := want[r.String()]
		if !ok {
			continue
		}
		delete(want, r.String())
		got, err := ReadIstio(r.input())
		if err != nil {
			t.Errorf("%s: %v", r, err)
		}
		if diff := cmp.Diff(w, got, equal); diff != "" {
			t.Errorf("%s (-want +got):\n%s", r, diff)
		}
	}
	if len(want) > 0 {
		t.Errorf("no recorded run %q", slices.Sorted(maps.Keys(want)))
	}
}

func include(c *Capture) {
	c.InboundAll, c.IncludeInboundPorts, c.IncludeOutboundPorts = false, []uint16{80, 8080}, []uint16{9200}
}

// A pod means the same whether the rules are istio-init's or istio-cni's, but for what the plug-in
// adds: its outbound exclusion of 15020, and the order of its own ports.
func TestReadIstioPods(t *testing.T) {
	k := func(c *Capture) { c.RerouteInterfaces = []string{"k6t-eth0"} }
	cni := func(c *Capture) {
		c.ExcludeInboundPorts = []uint16{15020, 15021, 15090}
		c.ExcludeOutboundPorts = []uint16{15020}
	}
	want := map[string]Capture{
		"v1.9.0/bridge-istio/injected-1.31.0-rc.0-native":                 with(),
		"v1.9.0/masquerade-istio-ports/injected-1.31.0-rc.0-cni":          with(k, cni),
		"v1.9.0/masquerade-istio-ports/injected-1.18.7-cni-classic":       with(k, cni),
		"v1.9.0/masquerade-istio-ports/injected-1.31.0-rc.0-cni-nftables": with(k, cni, func(c *Capture) { c.NativeNFTables = true }),
		"v1.9.0/no-interfaces/injected-1.29.6-cni":                        with(cni),
		"v1.9.0/masquerade-istio-ports/injected-1.31.0-rc.0-dns-dualstack": with(k, func(c *Capture) {
			c.DNS, c.DualStack = &plan.DNS{Port: 15053}, true
		}),
		"v1.9.0/masquerade-istio-ports/injected-1.31.0-rc.0-exclude-ranges": with(k, func(c *Capture) {
			c.ExcludeOutboundCIDRs = prefixes("10.96.0.1/32", "169.254.169.254/32")
			c.ExcludeInboundPorts = []uint16{15090, 15021, 22, 49152, 49153, 15020}
			c.ExcludeOutboundPorts = []uint16{3306}
		}),
		"v1.9.0/masquerade-traffic-annotations/injected-1.31.0-rc.0-native": with(k, func(c *Capture) {
			c.ExcludeOutboundCIDRs = prefixes("10.96.0.1/32")
			c.ExcludeInboundPorts = []uint16{15090, 15021, 22, 3389, 15020}
			c.DNS = &plan.DNS{Port: 15053}
		}),
		"v1.0.1/masquerade-istio-ports/injected-1.18.7-tproxy-classic": with(k, tproxy),
	}
	for _, p := range pods(t) {
		got, err := ReadIstio(p.input())
		if err != nil {
			t.Errorf("%s: %v", p.File, err)
		}
		if w, ok := want[p.File]; ok {
			delete(want, p.File)
			if diff := cmp.Diff(w, got, equal); diff != "" {
				t.Errorf("%s (-want +got):\n%s", p.File, diff)
			}
		}
		if p.Container != "istio-validation" {
			continue
		}
		// The arguments repeat the annotations.
		in := p.input()
		in.CNI = false
		fromArgs, err := ReadIstio(in)
		if err != nil {
			t.Errorf("%s: arguments: %v", p.File, err)
		}
		fromArgs.ExcludeOutboundPorts = append(fromArgs.ExcludeOutboundPorts, 15020)
		slices.Sort(fromArgs.ExcludeInboundPorts)
		slices.Sort(got.ExcludeInboundPorts)
		if diff := cmp.Diff(fromArgs, got, equal); diff != "" {
			t.Errorf("%s (-arguments +annotations):\n%s", p.File, diff)
		}
	}
	if len(want) > 0 {
		t.Errorf("no recorded pod %q", slices.Sorted(maps.Keys(want)))
	}
}

func TestReadIstioSettings(t *testing.T) {
	none := func(c *Capture) { c.InboundAll, c.OutboundAll, c.ExcludeInboundPorts = false, false, nil }
	args := func(s string) []string { return strings.Split(s, " ") }
	tests := []struct {
		name string
		in   Input
		want Capture
	}{
		{"nothing at all", Input{}, with(none)},
		{"ports and users", Input{Args: args("-p 1 -z 2 -e 3 -u 4 -g 5")}, with(none, func(c *Capture) {
			c.OutboundPort, c.InboundPort, c.TunnelPort, c.UID, c.GID, c.OwnPorts = 1, 2, 3, 4, 5, []uint16{3, 15020, 15021, 15090}
		})},
		{"group is the user's", Input{Args: args("-u 2000,3000")}, with(none, func(c *Capture) { c.UID, c.GID = 2000, 2000 })},
		{"empty user", Input{Args: list("-u", "", "-g", "")}, with(none)},
		{"empty mode", Input{Args: list("-m", "")}, with(none)},
		{"blanks, repetitions, host bits, bare addresses", Input{Args: list("-i", " * ", "-b", "*", "-d", " 22 ,,22, 80", "-x", "10.96.0.1/12, 10.96.0.0/12,192.0.2.1,fd00::1,fd00::1/8", "-k", "a, b,a", "-c", " c ")}, with(func(c *Capture) {
			c.ExcludeInboundPorts = []uint16{22, 80}
			c.ExcludeOutboundCIDRs = prefixes("10.96.0.0/12", "192.0.2.1/32", "fd00::1/128", "fd00::/8")
			c.RerouteInterfaces, c.ExcludeInterfaces = []string{"a", "b"}, []string{"c"}
		})},
		{"names derived from flags", Input{Env: map[string]string{"ISTIO_SERVICE_CIDR": "*", "ISTIO_INBOUND_PORTS": "80", "KUBE_VIRT_INTERFACES": "k", "CAPTURE_ALL_DNS": "1", "REDIRECT_DNS": "1", "DUAL_STACK": "1", "INBOUND_CAPTURE_PORT": "7"}}, with(none, func(c *Capture) {
			c.OutboundAll, c.IncludeInboundPorts, c.RerouteInterfaces = true, []uint16{80}, []string{"k"}
			c.DNS, c.DualStack, c.InboundPort = &plan.DNS{Port: 15053, All: true}, true, 7
		})},
		{"flags win over the environment", Input{Args: args("--dual-stack=false --redirect-dns=false -z 9"), Env: map[string]string{"ISTIO_DUAL_STACK": "true", "ISTIO_META_DNS_CAPTURE": "true", "INBOUND_CAPTURE_PORT": "7"}}, with(none, func(c *Capture) { c.InboundPort = 9 })},
		{"names of other components win", Input{Env: map[string]string{"ISTIO_DUAL_STACK": "false", "DUAL_STACK": "true", "INVALID_DROP": "t", "ISTIO_META_DNS_CAPTURE": "perhaps"}}, with(none, func(c *Capture) { c.DropInvalid = true })},
		{"ENVOY_PORT today", Input{Env: map[string]string{"ENVOY_PORT": "tcp://10.96.0.7:80"}, Image: "proxyv2:1.22.0"}, with(none)},
		{"ENVOY_PORT of old", Input{Env: map[string]string{"ENVOY_PORT": "7"}, Image: "proxyv2:1.18.7"}, with(none, func(c *Capture) { c.OutboundPort = 7 })},
		{"status port", Input{Args: list("-b", "*", "-d", "15999"), Annotations: map[string]string{AnnotationStatusPort: "15999"}}, with(func(c *Capture) {
			c.OutboundAll, c.ExcludeInboundPorts, c.OwnPorts = false, []uint16{15999}, []uint16{15008, 15999, 15021, 15090}
		})},
		{"mark", Input{Args: args("-m TPROXY -t 4660")}, with(none, tproxy, func(c *Capture) { c.TProxyMark = 4660 })},
		{"mark by variable", Input{Args: args("-m TPROXY"), Env: map[string]string{"ISTIO_INBOUND_TPROXY_MARK": "7"}}, with(none, tproxy, func(c *Capture) { c.TProxyMark = 7 })},
		{"mark without TPROXY", Input{Args: args("-m REDIRECT -t 0")}, with(none)},
		{"status port off", Input{Annotations: map[string]string{AnnotationStatusPort: "0"}}, with(none)},
		{"istio-cni without annotations", Input{CNI: true, Args: args("-b 80 -x 10.0.0.0/8 -k eth9 --redirect-dns=false -z 7")}, with(func(c *Capture) {
			c.ExcludeInboundPorts, c.ExcludeOutboundPorts, c.InboundPort = []uint16{15020, 15021, 15090}, []uint16{15020}, 7
		})},
		{"istio-cni with all annotations", Input{CNI: true, Env: map[string]string{"ISTIO_META_DNS_CAPTURE": "true"}, Annotations: map[string]string{
			AnnotationInterception: "TPROXY", AnnotationIncludeOutboundCIDRs: "10.0.0.0/8", AnnotationExcludeOutboundCIDRs: "10.96.0.0/12",
			AnnotationIncludeOutboundPorts: "9200", AnnotationExcludeOutboundPorts: "", AnnotationIncludeInboundPorts: "80,8080",
			AnnotationExcludeInboundPorts: "22", AnnotationExcludeInterfaces: "net1", AnnotationKubevirtInterfaces: "old", AnnotationRerouteInterfaces: "k6t-eth0",
		}}, with(include, func(c *Capture) {
			tproxy(c)
			c.OutboundAll = false
			c.IncludeOutboundCIDRs, c.ExcludeOutboundCIDRs = prefixes("10.0.0.0/8"), prefixes("10.96.0.0/12")
			c.ExcludeInboundPorts, c.ExcludeInterfaces, c.RerouteInterfaces = []uint16{22, 15020, 15021, 15090}, []string{"net1"}, []string{"k6t-eth0"}
			c.DNS = &plan.DNS{Port: 15053, All: true}
		})},
		{"istio-cni with the old reroute annotation alone", Input{CNI: true, Annotations: map[string]string{AnnotationKubevirtInterfaces: "old"}}, with(func(c *Capture) {
			c.ExcludeInboundPorts, c.ExcludeOutboundPorts, c.RerouteInterfaces = []uint16{15020, 15021, 15090}, []uint16{15020}, []string{"old"}
		})},
		{"istio-init does not look at annotations", Input{Annotations: map[string]string{AnnotationExcludeInboundPorts: "22", AnnotationRerouteInterfaces: "k6t-eth0"}}, with(none)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ReadIstio(tt.in)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got, equal); diff != "" {
				t.Errorf("capture (-want +got):\n%s", diff)
			}
		})
	}
}

func TestReadIstioErrors(t *testing.T) {
	in := Input{
		Args: list("-p", "70000", "-z=", "-u", "istio-proxy", "-m", "redirect", "-b", "80,*", "-d", "0,22", "-i", "10.0.0.0/40", "-x", "*",
			"-o", "http", "-q", "-1", "-k", "a b", "-c", "much-too-long-a-name", "--dual-stack=maybe", "--redirect-dns="),
		Env:         map[string]string{"INBOUND_TUNNEL_PORT": "x", "PROXY_GID": "-1"},
		Annotations: map[string]string{AnnotationStatusPort: "-1"},
	}
	_, err := ReadIstio(in)
	if err == nil {
		t.Fatal("no error")
	}
	got := strings.Split(err.Error(), "\n")
	slices.Sort(got)
	port, cidr, name := "want a port, 1 to 65535", "want a CIDR such as 10.0.0.0/8 or fd00::/8", "want the name of a network interface"
	want := []string{
		`-p/--envoy-port has "70000", ` + port,
		`-z/--inbound-capture-port has "=", ` + port,
		`environment variable INBOUND_TUNNEL_PORT has "x", ` + port,
		`-u/--proxy-uid has "istio-proxy", want a numeric id, 0 to 4294967295`,
		`environment variable PROXY_GID has "-1", want a numeric id, 0 to 4294967295`,
		`-m/--istio-inbound-interception-mode has "redirect", want REDIRECT, TPROXY or NONE`,
		`-b/--istio-inbound-ports has "*", ` + port,
		`-d/--istio-local-exclude-ports has "0", ` + port,
		`-i/--istio-service-cidr has "10.0.0.0/40", ` + cidr,
		`-x/--istio-service-exclude-cidr has "*", ` + cidr,
		`-o/--istio-local-outbound-ports-exclude has "http", ` + port,
		`-q/--istio-outbound-ports has "-1", ` + port,
		`-k/--kube-virt-interfaces has "a b", ` + name,
		`-c/--istio-exclude-interfaces has "much-too-long-a-name", ` + name,
		`--dual-stack has "maybe", want true or false`,
		`--redirect-dns has "", want true or false`,
		`annotation status.sidecar.istio.io/port has "-1", want a port, 0 to 65535`,
	}
	slices.Sort(want)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("errors (-want +got):\n%s", diff)
	}

	for _, mark := range []string{"0", "0x539", "65536", "4294967296"} {
		if _, err := ReadIstio(Input{Args: list("-m", "TPROXY", "-t", mark)}); err == nil || !strings.Contains(err.Error(), "without the bits 0x30000") {
			t.Errorf("mark %s: error %v, want one that says which", mark, err)
		}
	}

	_, err = ReadIstio(Input{CNI: true, Annotations: map[string]string{AnnotationExcludeInboundPorts: "22,70000"}})
	if want := `annotation traffic.sidecar.istio.io/excludeInboundPorts has "70000", ` + port; err == nil || err.Error() != want {
		t.Errorf("error is %v, want %s", err, want)
	}
	if _, err := ReadIstio(Input{Args: list("-p")}); err == nil || !strings.Contains(err.Error(), "-p/--envoy-port") {
		t.Errorf("error is %v, want one that names -p", err)
	}
}

// Whatever the list: an error, or a capture.
func FuzzReadIstio(f *testing.F) {
	for _, r := range runs(f) {
		f.Add(strings.Join(r.Args, "\n"), r.image(), false)
	}
	for _, p := range pods(f) {
		f.Add(strings.Join(p.Args, "\n"), p.Image, p.Container == "istio-validation")
	}
	f.Fuzz(func(t *testing.T, lines, image string, cni bool) {
		c, err := ReadIstio(Input{Args: strings.Split(lines, "\n"), Image: image, CNI: cni})
		if (err == nil) == (c.OutboundPort == 0) {
			t.Errorf("outbound port %d, error %v", c.OutboundPort, err)
		}
	})
}

func TestUserExcludedInboundPorts(t *testing.T) {
	c := with(func(c *Capture) { c.ExcludeInboundPorts = []uint16{15090, 22, 15021, 3389, 15020} })
	if diff := cmp.Diff([]uint16{22, 3389}, c.UserExcludedInboundPorts()); diff != "" {
		t.Errorf("of all ports (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]uint16{15090, 22, 15021, 3389, 15020}, c.ExcludeInboundPorts); diff != "" {
		t.Errorf("the capture changed (-want +got):\n%s", diff)
	}
	c.InboundAll = false
	if got := c.UserExcludedInboundPorts(); len(got) > 0 {
		t.Errorf("of listed ports: %d, want none: -d has no effect there", got)
	}
}

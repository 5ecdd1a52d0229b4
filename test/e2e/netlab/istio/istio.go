package istio

import (
	"fmt"
	"slices"
	"strings"
)

// Rules are what istio-iptables leaves in a pod's network namespace.
type Rules struct {
	// Version is the Istio version whose recordings were used.
	Version string
	// IPv4 and IPv6 are for iptables-restore and ip6tables-restore; empty if there are none.
	IPv4, IPv6 string
	// NFT is for nft -f, instead of the other two, if Istio was told to use native nftables.
	NFT string
	// DualStack says that the rules cover IPv6. The program then gives the loopback device ::6 too.
	DualStack bool
	// TProxy says that inbound connections are intercepted by TPROXY, for which the program also makes the
	// policy route of TProxyMark and TProxyTable, in IPv6 too if DualStack.
	TProxy bool
	// DNS says that DNS queries are redirected to the agent.
	DNS bool
}

// Empty reports whether there are no rules, as after a run for validation only.
func (r Rules) Empty() bool { return r.IPv4 == "" && r.IPv6 == "" && r.NFT == "" }

// Derive gives the rules that istio-iptables of a version writes when it is run with these
// arguments and environment variables. If the version was not recorded, the newest older one that
// was stands for it. It refuses with an error what it cannot represent.
func Derive(version string, args []string, env map[string]string) (Rules, error) {
	o, err := parse(version, args, env)
	if err != nil {
		return Rules{}, err
	}
	v, err := recordedVersion(version)
	if err != nil {
		return Rules{}, err
	}
	r := Rules{Version: v, DualStack: o.dual, DNS: o.dns, TProxy: o.tproxy}
	if o.skipApply {
		return r, nil
	}
	base, ok := bases[o.shape]
	if !ok {
		return Rules{}, fmt.Errorf("istio-iptables arguments cannot be represented: this combination was not recorded: %+v", o.shape)
	}
	if o.native {
		r.NFT, err = derive(v, base, "nft", nftText{}, o)
		return r, err
	}
	if r.IPv4, err = derive(v, base, "iptables-save", saveText{4}, o); err != nil {
		return Rules{}, err
	}
	if o.dual {
		r.IPv6, err = derive(v, base, "ip6tables-save", saveText{6}, o)
	}
	return r, err
}

// InIPv6 gives arguments with which Derive, which knows nothing of the pod, gives what the program writes in one that
// has no address but of IPv6: the rules of both families, as in a dual-stack mesh.
func InIPv6(args []string) []string { return append(args[:len(args):len(args)], "--dual-stack") }

// bases names, for each shape, the recording that has it. All else in that recording is replaced.
var bases = map[shape]string{
	{}:                                    "default",
	{dns: true}:                           "dns-env",
	{dns: true, dnsAll: true}:             "dns-capture-all",
	{dual: true}:                          "dual-stack-flag",
	{dual: true, dns: true}:               "dual-stack-env-dns",
	{invalid: true}:                       "drop-invalid",
	{native: true}:                        "native-nft-default",
	{native: true, dns: true}:             "native-nft-dns",
	{native: true, dual: true, dns: true}: "native-nft-dual-stack",
}

// derive replaces the rules of a recording that options decide by those that o asks for.
func derive(version, base, ext string, d dialect, o options) (string, error) {
	text, err := recording(version, base+"."+ext)
	if err != nil {
		return "", err
	}
	h, err := habitsOf(version, ext)
	if err != nil {
		return "", err
	}
	text, err = replace(text, nat, d, []replacement{
		{"PREROUTING", func([]string) []string { return d.render("PREROUTING", prerouting(d, o)) }},
		{"OUTPUT", func(old []string) []string {
			return append(d.render("OUTPUT", excludedInterfaces(o)), old...)
		}},
		// The first rule excepts HBONE.
		{"ISTIO_INBOUND", func(old []string) []string {
			if o.tproxy {
				return old[:1]
			}
			return append(old[:1:1], d.render("ISTIO_INBOUND", inbound(o))...)
		}},
		// The recorded rules for the proxy's own traffic, up to those for the loopback address, stay.
		{"ISTIO_OUTPUT", func(old []string) []string {
			keep := 0
			for _, line := range d.render("ISTIO_OUTPUT", []rule{{dst: "127.0.0.1/32", jump: "RETURN"}, {dst: "::1/128", jump: "RETURN"}}) {
				keep = max(keep, 1+slices.Index(old, line))
			}
			return slices.Concat(d.render("ISTIO_OUTPUT", excludedPorts(h, o)), old[:keep], d.render("ISTIO_OUTPUT", outbound(d, h, o)))
		}},
	})
	if err != nil {
		return "", fmt.Errorf("istio %s: recording %s.%s: %w", version, base, ext, err)
	}
	if o.tproxy {
		mangle, err := tproxy(version, d, o)
		return d.join(text, mangle), err
	}
	return text, nil
}

// A replacement makes other rules of those that a chain has.
type replacement struct {
	chain string
	make  func(old []string) []string
}

// replace changes chains of a table in a recording.
func replace(text, table string, d dialect, all []replacement) (string, error) {
	lines := strings.SplitAfter(text, "\n")
	for _, c := range all {
		first, end := d.find(lines, table, c.chain)
		if first == end {
			return "", fmt.Errorf("no rule in chain %s of table %s", c.chain, table)
		}
		lines = slices.Concat(lines[:first], c.make(slices.Clone(lines[first:end])), lines[end:])
	}
	return strings.Join(lines, ""), nil
}

// habits differ from version to version.
type habits struct {
	udpPorts bool // -o excludes the ports for UDP too
	endsWith bool // a last rule returns what no included CIDR took
}

// habitsOf reads them from two recordings.
func habitsOf(version, ext string) (habits, error) {
	if ext == "nft" {
		// All versions that write nftables themselves do this.
		return habits{udpPorts: true}, nil
	}
	exclusions, err := recording(version, "exclusions.iptables-save")
	if err != nil {
		return habits{}, err
	}
	includes, err := recording(version, "include-lists.iptables-save")
	return habits{
		udpPorts: strings.Contains(exclusions, "-p udp -m udp --dport 3306 -j RETURN"),
		endsWith: strings.Contains(includes, "-A ISTIO_OUTPUT -j RETURN"),
	}, err
}

func excludedInterfaces(o options) (rules []rule) {
	for _, dev := range o.exclude {
		rules = append(rules, rule{out: dev, jump: "RETURN"})
	}
	return rules
}

func excludedInbound(o options) (rules []rule) {
	for _, dev := range o.exclude {
		rules = append(rules, rule{in: dev, jump: "RETURN"})
	}
	return rules
}

func prerouting(d dialect, o options) (rules []rule) {
	all := "ISTIO_REDIRECT"
	if o.virtual4 && d == (saveText{6}) {
		all = "RETURN"
	}
	for _, dev := range o.virtual {
		if o.includeCIDRs.all() {
			rules = append(rules, rule{in: dev, jump: all})
		} else {
			for _, c := range d.ours(o.includeCIDRs) {
				rules = append(rules, rule{dst: c, in: dev, jump: "ISTIO_REDIRECT"})
			}
		}
		rules = append(rules, rule{in: dev, jump: "RETURN"})
	}
	rules = append(rules, excludedInbound(o)...)
	if len(o.inboundPorts) > 0 && !o.tproxy {
		rules = append(rules, rule{proto: "tcp", jump: "ISTIO_INBOUND"})
	}
	return rules
}

func inbound(o options) (rules []rule) {
	if !o.inboundPorts.all() {
		for _, port := range o.inboundPorts {
			rules = append(rules, rule{proto: "tcp", dport: port, jump: "ISTIO_IN_REDIRECT"})
		}
		return rules
	}
	for _, port := range o.excludeInPorts {
		rules = append(rules, rule{proto: "tcp", dport: port, jump: "RETURN"})
	}
	return append(rules, rule{proto: "tcp", jump: "ISTIO_IN_REDIRECT"})
}

func excludedPorts(h habits, o options) (rules []rule) {
	for _, port := range o.excludeOutPorts {
		rules = append(rules, rule{proto: "tcp", dport: port, jump: "RETURN"})
		if h.udpPorts {
			rules = append(rules, rule{proto: "udp", dport: port, jump: "RETURN"})
		}
	}
	return rules
}

// outbound is the end of ISTIO_OUTPUT: what leaves the pod.
func outbound(d dialect, h habits, o options) (rules []rule) {
	for _, c := range d.ours(o.excludeCIDRs) {
		rules = append(rules, rule{dst: c, jump: "RETURN"})
	}
	for _, port := range o.includeOutPorts {
		rules = append(rules, rule{proto: "tcp", dport: port, jump: "ISTIO_REDIRECT"})
	}
	if o.includeCIDRs.all() {
		return append(rules, rule{jump: "ISTIO_REDIRECT"})
	}
	for _, c := range d.ours(o.includeCIDRs) {
		rules = append(rules, rule{dst: c, jump: "ISTIO_REDIRECT"})
	}
	if h.endsWith && len(o.includeCIDRs) > 0 {
		rules = append(rules, rule{jump: "RETURN"})
	}
	return rules
}

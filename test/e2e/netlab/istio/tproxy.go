package istio

import (
	"errors"
	"fmt"
	"strings"
)

// The policy route of interception by TPROXY: `ip rule add fwmark 1337 lookup 133`, `ip route add local
// default dev lo table 133`.
const (
	TProxyMark  = 1337
	TProxyTable = 133
)

// tproxy gives table mangle of interception by TPROXY, from the recording of a pod with IPv4 only. What
// was not recorded with TPROXY follows the program's own golden tests (tproxy.golden of istio-iptables and
// istio-nftables, with interface not-istio-nic excluded, IPv6 on): -c puts a rule before all others of PREROUTING
// and OUTPUT, and each rule with an address comes once per family.
func tproxy(version string, d dialect, o options) (string, error) {
	if len(o.inboundPorts) == 0 || o.invalid {
		return "", errors.New("istio-iptables arguments cannot be represented: TPROXY was recorded with inbound ports and without --drop-invalid only")
	}
	name := "tproxy.iptables-save"
	if o.native {
		name = "native-nft-tproxy-k.nft"
	}
	source, err := recording(version, name)
	if err != nil {
		return "", err
	}
	text, err := replace(d.section(source, mangle), mangle, d, []replacement{
		{"PREROUTING", func(old []string) []string { return append(d.render("PREROUTING", excludedInbound(o)), old...) }},
		{"OUTPUT", func(old []string) []string { return append(d.render("OUTPUT", excludedInterfaces(o)), old...) }},
		// The first three rules are for what has a mark or comes from the loopback device.
		{"ISTIO_INBOUND", func(old []string) []string { return append(old[:3:3], d.render("ISTIO_INBOUND", divert(o))...) }},
	})
	if err != nil {
		return "", fmt.Errorf("istio %s: recording %s: %w", version, name, err)
	}
	switch save, ok := d.(saveText); {
	case ok && save.family == 6:
		text = strings.NewReplacer("127.0.0.1/32", "::1/128", "127.0.0.6/32", "::6/128", "--on-ip 0.0.0.0", "--on-ip ::").Replace(text)
	case !ok && o.dual:
		text = bothFamilies(text)
	}
	return text, nil
}

// divert is the end of ISTIO_INBOUND in table mangle.
func divert(o options) (rules []rule) {
	take := func(port string) {
		rules = append(rules, rule{proto: "tcp", dport: port, established: true, jump: "ISTIO_DIVERT"}, rule{proto: "tcp", dport: port, jump: "ISTIO_TPROXY"})
	}
	if !o.inboundPorts.all() {
		for _, port := range o.inboundPorts {
			take(port)
		}
		return rules
	}
	for _, port := range o.excludeInPorts {
		rules = append(rules, rule{proto: "tcp", dport: port, jump: "RETURN"})
	}
	take("")
	return rules
}

// bothFamilies puts behind each rule of nftables that has an IPv4 address the same one for IPv6.
func bothFamilies(text string) string {
	var lines []string
	ipv6 := strings.NewReplacer("ip daddr != 127.0.0.1", "ip6 daddr != ::1", "ip saddr 127.0.0.6", "ip6 saddr ::6", "tproxy ip to", "tproxy ip6 to")
	for line := range strings.Lines(text) {
		lines = append(lines, line)
		if other := ipv6.Replace(line); other != line {
			lines = append(lines, other)
		}
	}
	return strings.Join(lines, "")
}

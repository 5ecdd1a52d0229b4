// Package istio sets up a pod's redirection as istio-init does, from rules that real istio-iptables
// programs were recorded to write. What was not recorded in just this combination is derived from
// what was, in the recorded form of the single options.
package istio

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/spf13/pflag"
)

// options are what istio-iptables is told, as far as the recorded rules can follow it.
type options struct {
	includeCIDRs, excludeCIDRs   list // -i, -x
	includeOutPorts              list // -q
	excludeOutPorts              list // -o
	inboundPorts, excludeInPorts list // -b, -d
	virtual, exclude             list // -k, -c: interfaces
	skipApply, validation        bool
	tproxy                       bool              // -m
	otherMode                    string            // -m, if it is neither REDIRECT nor TPROXY
	values                       map[string]string // of the flags in fixed
	shape
}

// shape is what only a recording can tell.
type shape struct{ dns, dnsAll, dual, invalid, native bool }

// list is a comma-separated option. One "*" means everything.
type list []string

func (l list) all() bool { return len(l) == 1 && l[0] == "*" }

func split(s string) list {
	if s == "" {
		return nil
	}
	return strings.Split(s, ",")
}

// fixed are the values that all recordings have; others cannot be represented.
var fixed = map[string]string{
	"envoy-port": "15001", "inbound-capture-port": "15006", "inbound-tunnel-port": "15008",
	"proxy-uid": "1337", "proxy-gid": "1337",
	"istio-inbound-tproxy-mark": "1337", "istio-inbound-tproxy-route-table": "133",
}

// ignored options do not change the rules.
var ignored = []string{"log_output_level", "log_as_json", "log_caller", "log_stacktrace_level", "log_target", "probe-timeout",
	"iptables-probe-port"}

// refusedEnv are variables that change the rules in ways that were not recorded.
var refusedEnv = []string{"ISTIO_OUTBOUND_OWNER_GROUPS", "ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE", "DISABLE_REDIRECTION_ON_LOCAL_LOOPBACK"}

// parse is read, and refuses what cannot be derived.
func parse(args []string, env map[string]string) (options, error) {
	o, err := read(args, env)
	if err != nil {
		return o, err
	}
	var errs []error
	for name, want := range fixed {
		if got := o.values[name]; got != want {
			errs = append(errs, fmt.Errorf("--%s=%s: only %s was recorded", name, got, want))
		}
	}
	if o.otherMode != "" {
		errs = append(errs, fmt.Errorf("--istio-inbound-interception-mode=%s: not recorded", o.otherMode))
	}
	o.values = nil
	if len(errs) > 0 {
		return o, fmt.Errorf("istio-iptables arguments cannot be represented: %w", errors.Join(errs...))
	}
	return o, nil
}

// read reads the arguments of an istio-init container. A leading "istio-iptables" is pilot-agent's
// sub-command.
func read(args []string, env map[string]string) (options, error) {
	o := options{values: map[string]string{}}
	f := pflag.NewFlagSet("istio-iptables", pflag.ContinueOnError)
	f.SetOutput(discard{})
	values := map[string]*string{}
	for name, short := range map[string]string{
		"envoy-port": "p", "inbound-capture-port": "z", "inbound-tunnel-port": "e", "proxy-uid": "u", "proxy-gid": "g",
		"istio-inbound-interception-mode": "m", "istio-inbound-ports": "b", "istio-local-exclude-ports": "d",
		"istio-service-cidr": "i", "istio-service-exclude-cidr": "x", "istio-outbound-ports": "q",
		"istio-local-outbound-ports-exclude": "o", "istio-exclude-interfaces": "c", "kube-virt-interfaces": "k",
		"istio-inbound-tproxy-mark": "t", "istio-inbound-tproxy-route-table": "r",
	} {
		values[name] = f.StringP(name, short, fixed[name], "")
	}
	for _, name := range ignored {
		if f.Lookup(name) == nil {
			f.String(name, "", "")
		}
	}
	for name, b := range map[string]*bool{
		"redirect-dns": &o.dns, "capture-all-dns": &o.dnsAll, "dual-stack": &o.dual, "drop-invalid": &o.invalid,
		"native-nftables": &o.native, "skip-rule-apply": &o.skipApply, "run-validation": &o.validation,
	} {
		f.BoolVar(b, name, false, "")
	}
	if len(args) > 0 && args[0] == "istio-iptables" {
		args = args[1:]
	}
	if err := f.Parse(args); err != nil {
		return o, fmt.Errorf("istio-iptables cannot be represented: %w", err)
	}
	var errs []error
	if f.NArg() > 0 {
		errs = append(errs, fmt.Errorf("arguments %q", f.Args()))
	}
	for name := range fixed {
		o.values[name] = *values[name]
	}
	for _, name := range refusedEnv {
		if v := env[name]; v != "" && v != "*" {
			errs = append(errs, fmt.Errorf("environment variable %s=%s: not recorded", name, v))
		}
	}
	switch mode := *values["istio-inbound-interception-mode"]; mode {
	case "", "REDIRECT":
	case "TPROXY":
		o.tproxy = true
	default:
		o.otherMode = mode
	}
	o.includeCIDRs = split(*values["istio-service-cidr"])
	o.excludeCIDRs = split(*values["istio-service-exclude-cidr"])
	o.includeOutPorts = split(*values["istio-outbound-ports"])
	o.excludeOutPorts = split(*values["istio-local-outbound-ports-exclude"])
	o.inboundPorts = split(*values["istio-inbound-ports"])
	o.excludeInPorts = split(*values["istio-local-exclude-ports"])
	o.virtual = split(*values["kube-virt-interfaces"])
	o.exclude = split(*values["istio-exclude-interfaces"])
	o.dns = o.dns || env["ISTIO_META_DNS_CAPTURE"] == "true"
	o.dual = o.dual || env["ISTIO_DUAL_STACK"] == "true"
	o.invalid = o.invalid || env["INVALID_DROP"] == "true"
	for i, l := range []*list{&o.includeCIDRs, &o.excludeCIDRs} {
		if i == 0 && l.all() {
			continue
		}
		for j, s := range *l {
			p, err := netip.ParsePrefix(s)
			if err != nil {
				errs = append(errs, err)
				continue
			}
			(*l)[j] = p.Masked().String() // as the kernel gives it back
		}
	}
	if slices.Contains(o.excludeOutPorts, "*") || slices.Contains(o.includeOutPorts, "*") {
		errs = append(errs, errors.New("a wildcard among outbound ports was not recorded"))
	}
	if len(errs) > 0 {
		return o, fmt.Errorf("istio-iptables arguments cannot be represented: %w", errors.Join(errs...))
	}
	return o, nil
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }

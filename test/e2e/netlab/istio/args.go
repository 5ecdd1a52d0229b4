// Package istio sets up a pod's redirection as istio-init does, from rules that real istio-iptables
// programs were recorded to write. What was not recorded in just this combination is derived from
// what was, in the recorded form of the single options.
package istio

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"path"
	"slices"
	"strconv"
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
	virtual4                     bool // only a recording tells: rules of IPv6 let virtual interfaces pass
	skipApply, validation        bool // skipApply: or nothing is written for another reason
	trace                        bool
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

// ignored options do not change what the rules do; those that are booleans take no value.
var ignored = map[string]struct {
	short  string
	isBool bool
}{
	"log_output_level": {}, "log_as_json": {isBool: true}, "log_caller": {}, "log_stacktrace_level": {}, "log_target": {},
	"log_rotate": {}, "log_rotate_max_age": {}, "log_rotate_max_backups": {}, "log_rotate_max_size": {},
	"probe-timeout": {}, "iptables-probe-port": {}, "iptables-version": {}, "force-iptables-binary": {}, "network-namespace": {}, "output-paths": {},
	"restore-format": {"f", true}, "reconcile": {isBool: true}, "force-apply": {isBool: true}, "cni-mode": {isBool: true},
}

// refusedEnv are variables that change the rules in ways that were not recorded.
var refusedEnv = []string{"ISTIO_OUTBOUND_OWNER_GROUPS", "ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE", "DISABLE_REDIRECTION_ON_LOCAL_LOOPBACK"}

// parse is read, and refuses what cannot be derived.
func parse(version string, args []string, env map[string]string) (options, error) {
	o, err := read(version, args, env)
	if err != nil {
		return o, err
	}
	var errs []error
	for name, want := range fixed {
		if got := o.values[name]; got != want {
			errs = append(errs, fmt.Errorf("--%s=%s: only %s was recorded", name, got, want))
		}
	}
	if o.trace {
		errs = append(errs, errors.New("--iptables-trace-logging: not recorded"))
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

// read reads the arguments of an istio-init container, in any form that the program takes: a flag wins over a
// variable, which has the flag's name in capitals or, for some, another one. The names of the program and of
// pilot-agent's sub-command may be among them.
func read(version string, args []string, env map[string]string) (options, error) {
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
		values[name] = f.StringP(name, short, "", "")
	}
	booleans := map[string]*bool{
		"redirect-dns": &o.dns, "capture-all-dns": &o.dnsAll, "dual-stack": &o.dual, "drop-invalid": &o.invalid,
		"native-nftables": &o.native, "skip-rule-apply": &o.skipApply, "run-validation": &o.validation,
		"cleanup-only": new(bool), "iptables-trace-logging": &o.trace, "dry-run": new(bool),
	}
	for name, b := range booleans {
		f.BoolVarP(b, name, map[string]string{"dry-run": "n"}[name], false, "")
	}
	for name, d := range ignored {
		if d.isBool {
			f.BoolP(name, d.short, false, "")
		} else {
			f.StringP(name, d.short, "", "")
		}
	}
	if err := f.Parse(args); err != nil {
		return o, fmt.Errorf("istio-iptables cannot be represented: %w", err)
	}
	given := func(name string) string {
		if f.Changed(name) {
			return ""
		}
		if name == "envoy-port" && slices.Compare(numbers(version), []int{1, 22}) >= 0 {
			return "" // a service named envoy gives every container such a variable
		}
		return env[strings.ToUpper(strings.ReplaceAll(name, "-", "_"))]
	}
	for name, value := range values {
		if v := given(name); v != "" {
			*value = v
		}
	}
	for name, value := range booleans {
		if b, err := strconv.ParseBool(given(name)); err == nil { // the program skips a boolean that is none
			*value = b
		}
	}
	for name, b := range map[string]struct {
		flag  string
		value *bool
	}{"ISTIO_META_DNS_CAPTURE": {"redirect-dns", &o.dns}, "ISTIO_DUAL_STACK": {"dual-stack", &o.dual}, "INVALID_DROP": {"drop-invalid", &o.invalid}} {
		old := name == "ISTIO_DUAL_STACK" && slices.Compare(numbers(version), []int{1, 22}) < 0 // and does not look at it
		if v, err := strconv.ParseBool(env[name]); err == nil && !f.Changed(b.flag) && !old {
			*b.value = v
		}
	}
	var errs []error
	o.skipApply = o.skipApply || *booleans["dry-run"] || *booleans["cleanup-only"]
	for _, a := range f.Args() {
		if name := path.Base(a); name != "pilot-agent" && name != "istio-iptables" {
			errs = append(errs, fmt.Errorf("argument %q", a))
		}
	}
	for name, value := range fixed {
		o.values[name] = cmp.Or(*values[name], value)
	}
	if *values["proxy-gid"] == "" {
		o.values["proxy-gid"] = o.values["proxy-uid"]
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
	for name, l := range map[string]list{"-o": o.excludeOutPorts, "-q": o.includeOutPorts, "-b": o.inboundPorts, "-d": o.excludeInPorts} {
		for _, s := range l {
			if _, err := strconv.ParseUint(s, 10, 16); err != nil && !(name == "-b" && l.all()) {
				errs = append(errs, fmt.Errorf("%s has %q, want a port", name, s))
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(o.values)) {
		if v := o.values[name]; v != fixed[name] {
			if _, err := strconv.ParseUint(v, 10, 32); err != nil {
				errs = append(errs, fmt.Errorf("--%s has %q, want a number", name, v))
			}
		}
	}
	if o.tproxy {
		for _, name := range []string{"istio-inbound-tproxy-mark", "istio-inbound-tproxy-route-table"} {
			if v := o.values[name]; v != fixed[name] { // Envoy's own mark, and the lab's policy route
				errs = append(errs, fmt.Errorf("--%s=%s: only %s was recorded", name, v, fixed[name]))
			}
		}
	}
	if len(errs) > 0 {
		return o, fmt.Errorf("istio-iptables arguments cannot be represented: %w", errors.Join(errs...))
	}
	return o, nil
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }

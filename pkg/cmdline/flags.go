package cmdline

import "strings"

// Flag is the long name of a flag of istio-iptables.
type Flag string

// The flags that say what is redirected. Lists are separated by commas.
const (
	FlagOutboundPort         Flag = "envoy-port"
	FlagInboundPort          Flag = "inbound-capture-port"
	FlagTunnelPort           Flag = "inbound-tunnel-port"
	FlagUID                  Flag = "proxy-uid"
	FlagGID                  Flag = "proxy-gid"
	FlagInterception         Flag = "istio-inbound-interception-mode"
	FlagTProxyMark           Flag = "istio-inbound-tproxy-mark"
	FlagIncludeInboundPorts  Flag = "istio-inbound-ports"
	FlagExcludeInboundPorts  Flag = "istio-local-exclude-ports"
	FlagIncludeOutboundCIDRs Flag = "istio-service-cidr"
	FlagExcludeOutboundCIDRs Flag = "istio-service-exclude-cidr"
	FlagIncludeOutboundPorts Flag = "istio-outbound-ports"
	FlagExcludeOutboundPorts Flag = "istio-local-outbound-ports-exclude"
	FlagRerouteInterfaces    Flag = "kube-virt-interfaces"
	FlagExcludeInterfaces    Flag = "istio-exclude-interfaces"
	FlagDualStack            Flag = "dual-stack"
	FlagRedirectDNS          Flag = "redirect-dns"
	FlagCaptureAllDNS        Flag = "capture-all-dns"
	FlagDropInvalid          Flag = "drop-invalid"
	FlagNativeNFTables       Flag = "native-nftables"
)

// A definition is what the parser needs to know of a flag.
type definition struct {
	// short is the one-letter form, 0 if there is none in any release.
	short byte
	// isBool flags never take the next element as their value; alone they mean "true".
	isBool bool
	// value is the default where it is not the empty string or "false", and matters here.
	value string
	// env is a variable that sets the flag besides the one that environment derives from its name.
	env string
}

// flags holds every flag of istio-iptables 1.11 to 1.31, from the help texts of the real programs
// (testdata). No letter ever meant two flags, so that one table serves all releases. 1.11 lacks -c.
var flags = map[Flag]definition{
	FlagOutboundPort:         {short: 'p', value: "15001"},
	FlagInboundPort:          {short: 'z', value: "15006"},
	FlagTunnelPort:           {short: 'e', value: "15008"},
	FlagUID:                  {short: 'u', value: "1337"},
	FlagGID:                  {short: 'g'},
	FlagInterception:         {short: 'm'},
	FlagTProxyMark:           {short: 't', value: "1337"},
	FlagIncludeInboundPorts:  {short: 'b'},
	FlagExcludeInboundPorts:  {short: 'd'},
	FlagIncludeOutboundCIDRs: {short: 'i'},
	FlagExcludeOutboundCIDRs: {short: 'x'},
	FlagIncludeOutboundPorts: {short: 'q'},
	FlagExcludeOutboundPorts: {short: 'o'},
	FlagRerouteInterfaces:    {short: 'k'},
	FlagExcludeInterfaces:    {short: 'c'},
	FlagDualStack:            {isBool: true, env: "ISTIO_DUAL_STACK"},
	FlagRedirectDNS:          {isBool: true, env: "ISTIO_META_DNS_CAPTURE"},
	FlagCaptureAllDNS:        {isBool: true},
	FlagDropInvalid:          {isBool: true, env: "INVALID_DROP"},
	FlagNativeNFTables:       {isBool: true},

	"cleanup-only":                     {isBool: true},
	"cni-mode":                         {isBool: true},
	"dry-run":                          {short: 'n', isBool: true},
	"force-apply":                      {isBool: true},
	"force-iptables-binary":            {},
	"help":                             {short: 'h', isBool: true},
	"iptables-probe-port":              {},
	"iptables-trace-logging":           {isBool: true},
	"iptables-version":                 {},
	"istio-inbound-tproxy-route-table": {short: 'r'},
	"log_as_json":                      {isBool: true},
	"log_caller":                       {},
	"log_output_level":                 {},
	"log_rotate":                       {},
	"log_rotate_max_age":               {},
	"log_rotate_max_backups":           {},
	"log_rotate_max_size":              {},
	"log_stacktrace_level":             {},
	"log_target":                       {},
	"network-namespace":                {},
	"output-paths":                     {},
	"probe-timeout":                    {},
	"reconcile":                        {isBool: true},
	"restore-format":                   {short: 'f', isBool: true},
	"run-validation":                   {isBool: true},
	"skip-rule-apply":                  {isBool: true},
}

var shorthands = func() map[byte]Flag {
	m := map[byte]Flag{}
	for f, d := range flags {
		if d.short != 0 {
			m[d.short] = f
		}
	}
	return m
}()

// String gives f as a user writes it in full: "--envoy-port", or "-p/--envoy-port" if there is a short form.
func (f Flag) String() string {
	if short := flags[f].short; short != 0 {
		return "-" + string(short) + "/--" + string(f)
	}
	return "--" + string(f)
}

// variable is the environment variable that Istio derives from the name of f.
func (f Flag) variable() string { return variables[f] }

var variables = func() map[Flag]string {
	m := map[Flag]string{}
	for f := range flags {
		m[f] = strings.ToUpper(strings.ReplaceAll(string(f), "-", "_"))
	}
	return m
}()

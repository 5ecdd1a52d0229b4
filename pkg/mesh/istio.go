package mesh

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/meshvirt/meshvirt/pkg/cmdline"
	"github.com/meshvirt/meshvirt/pkg/plan"
)

// IstioName is what Istio with sidecars is called.
const IstioName = "istio"

// Ports of Istio's containers.
const (
	// IstioOutboundPort and IstioInboundPort are where Envoy listens for redirected connections.
	IstioOutboundPort = 15001
	IstioInboundPort  = 15006
	// IstioTunnelPort is Envoy's listener for HBONE, mTLS tunnels of ambient meshes: peers dial it.
	IstioTunnelPort = 15008
	// IstioAgentPort is istio-agent's: merged metrics, and probes that the injector rewrote to it.
	IstioAgentPort = 15020
	// IstioHealthPort answers the kubelet's readiness and start-up probes of istio-proxy.
	IstioHealthPort = 15021
	// IstioDNSPort is istio-agent's DNS proxy, on loopback.
	IstioDNSPort = 15053
	// IstioMetricsPort is Envoy's own metrics for Prometheus.
	IstioMetricsPort = 15090
)

// IstioReservedPorts are the ports that Istio's containers listen on, outside or on loopback; a guest
// behind the same address cannot have them. Istio documents them as "ports used by the sidecar".
var IstioReservedPorts = []uint16{15000, IstioOutboundPort, 15004, IstioInboundPort, IstioTunnelPort, 15009, IstioAgentPort, IstioHealthPort, IstioDNSPort, IstioMetricsPort}

// Input is where Istio's settings of one pod stand.
type Input struct {
	// Args are the command and the arguments, one after the other, of istio-init, or of
	// istio-validation where istio-cni writes the rules.
	Args []string
	// Env is the environment of istio-init; where istio-cni writes the rules, that of istio-proxy, because
	// the plug-in looks there. Values from elsewhere (valueFrom) are left out.
	Env map[string]string
	// Annotations are the pod's.
	Annotations map[string]string
	// Image is that of the container whose arguments Args are. Its tag tells the release where the
	// arguments mean different things. Without a readable one the newest release is assumed.
	Image string
	// CNI says that istio-cni writes the rules: the pod has istio-validation instead of istio-init.
	CNI bool
}

// Program is what cmdline.Args.Within asks for before arguments are changed: the image that obeys them, and the
// environment, but not where istio-cni writes the rules, which has its lists of interfaces from annotations alone.
func (in Input) Program() (image string, env map[string]string) {
	if in.CNI {
		return in.Image, nil
	}
	return in.Image, in.Env
}

// cniSettings are the annotations that istio-cni reads in place of flags, and its own defaults. Its
// outbound default is no slip of ours: the plug-in has one default for both directions.
var cniSettings = map[cmdline.Flag]struct{ key, value string }{
	cmdline.FlagInterception:         {AnnotationInterception, string(InterceptionRedirect)},
	cmdline.FlagIncludeOutboundCIDRs: {AnnotationIncludeOutboundCIDRs, "*"},
	cmdline.FlagExcludeOutboundCIDRs: {AnnotationExcludeOutboundCIDRs, ""},
	cmdline.FlagIncludeOutboundPorts: {AnnotationIncludeOutboundPorts, ""},
	cmdline.FlagExcludeOutboundPorts: {AnnotationExcludeOutboundPorts, "15020"},
	cmdline.FlagIncludeInboundPorts:  {AnnotationIncludeInboundPorts, "*"},
	cmdline.FlagExcludeInboundPorts:  {AnnotationExcludeInboundPorts, "15020"},
	cmdline.FlagRerouteInterfaces:    {AnnotationRerouteInterfaces, ""},
	cmdline.FlagExcludeInterfaces:    {AnnotationExcludeInterfaces, ""},
}

// ReadIstio reads the redirection that Istio sets up in a pod. Its error names every flag, variable or
// annotation whose value it does not understand, and what is wanted.
//
// A flag wins over the environment, and that over the default. Where istio-cni writes the rules, what
// an annotation can say comes from annotations alone, as in the plug-in: the arguments of
// istio-validation were rendered from the same values but nobody redirects by them. Only the
// proxy's ports and users and native nftables, for which there is no annotation, are taken from there.
//
// What the release (Input.Image) changes: before 1.22 ISTIO_DUAL_STACK is not believed (1.18 ignores
// it, 1.22 obeys; between is not recorded, and whether the mesh serves IPv6 shows in the running pod)
// and ENVOY_PORT is; before 1.13 port 22 is always excluded. The shell scripts of the image proxy_init,
// before 1.4, are in istio_script.go and cmdline/script.go.
//
// Two leniencies: of several users in -u the first is taken; and an address without prefix length is
// taken as a CIDR of that address, which newer releases of Istio skip over with a line in the log.
func ReadIstio(in Input) (Capture, error) {
	args, err := cmdline.Parse(in.Args)
	if err != nil {
		return Capture{}, err
	}
	args = args.Within(in.Image, in.Env)
	r, release := reader{Input: in, args: args}, args.Release()
	c := Capture{
		OutboundPort:         r.port(cmdline.FlagOutboundPort),
		InboundPort:          r.port(cmdline.FlagInboundPort),
		TunnelPort:           r.port(cmdline.FlagTunnelPort),
		UID:                  r.id(cmdline.FlagUID, 1337),
		Interception:         r.interception(),
		ExcludeOutboundPorts: r.ports(r.find(cmdline.FlagExcludeOutboundPorts)),
		IncludeOutboundPorts: r.ports(r.find(cmdline.FlagIncludeOutboundPorts)),
		ExcludeInboundPorts:  r.ports(r.find(cmdline.FlagExcludeInboundPorts)),
		ExcludeOutboundCIDRs: r.cidrs(r.find(cmdline.FlagExcludeOutboundCIDRs)),
		RerouteInterfaces:    r.interfaces(cmdline.FlagRerouteInterfaces),
		ExcludeInterfaces:    r.interfaces(cmdline.FlagExcludeInterfaces),
		DualStack:            r.bool(cmdline.FlagDualStack),
		DropInvalid:          r.bool(cmdline.FlagDropInvalid),
		NativeNFTables:       r.bool(cmdline.FlagNativeNFTables),
		DialsLoopback:        release.Before(1, 10),
		CannotExclude:        args.Script() != cmdline.NoScript || !args.Knows(cmdline.FlagExcludeInterfaces),
	}
	c.GID = r.id(cmdline.FlagGID, c.UID)
	if c.Interception == InterceptionTPROXY {
		c.TProxyMark = r.mark(cmdline.FlagTProxyMark)
	}
	if s := r.find(cmdline.FlagIncludeOutboundCIDRs); strings.TrimSpace(s.Value) == "*" {
		c.OutboundAll = true
	} else {
		c.IncludeOutboundCIDRs = r.cidrs(s)
	}
	if s := r.find(cmdline.FlagIncludeInboundPorts); strings.TrimSpace(s.Value) == "*" {
		c.InboundAll = true
	} else {
		c.IncludeInboundPorts = r.ports(s)
	}
	if r.bool(cmdline.FlagRedirectDNS) {
		// istio-cni does not ask which server a query goes to.
		c.DNS = &plan.DNS{Port: IstioDNSPort, All: r.bool(cmdline.FlagCaptureAllDNS) || in.CNI}
	}
	c.OwnPorts = []uint16{c.TunnelPort, r.agentPort(), IstioHealthPort, IstioMetricsPort}
	adaptToScript(&c, args)
	var always []uint16
	if in.CNI {
		always = []uint16{IstioAgentPort, IstioHealthPort, IstioMetricsPort}
	}
	if c.InboundAll && release.Before(1, 13) && args.Script() != cmdline.FirstScript {
		always = append(always, 22)
	}
	for _, p := range always {
		if !slices.Contains(c.ExcludeInboundPorts, p) {
			c.ExcludeInboundPorts = append(c.ExcludeInboundPorts, p)
		}
	}
	if err := errors.Join(r.errs...); err != nil {
		return Capture{}, err
	}
	return c, nil
}

// A reader looks settings up and collects what is wrong with them.
type reader struct {
	Input
	args cmdline.Args
	errs []error
}

func (r *reader) fail(s cmdline.Setting, bad, want string) {
	r.errs = append(r.errs, fmt.Errorf("%s has %q, want %s", s.From, bad, want))
}

func (r *reader) find(f cmdline.Flag) cmdline.Setting {
	if a, ok := cniSettings[f]; ok && r.CNI {
		if v, ok := r.Annotations[a.key]; ok {
			return cmdline.Setting{From: "annotation " + a.key, Value: v}
		}
		if v, ok := r.Annotations[AnnotationKubevirtInterfaces]; ok && f == cmdline.FlagRerouteInterfaces {
			return cmdline.Setting{From: "annotation " + AnnotationKubevirtInterfaces, Value: v}
		}
		return cmdline.Setting{From: cmdline.Default, Value: a.value}
	}
	return r.args.Setting(f)
}

func (r *reader) bool(f cmdline.Flag) bool {
	s := r.find(f)
	if s.From == cmdline.Default {
		return false
	}
	b, err := strconv.ParseBool(s.Value)
	if err != nil {
		r.fail(s, s.Value, "true or false")
	}
	return b
}

func (r *reader) port(f cmdline.Flag) uint16 {
	s := r.find(f)
	p, err := plan.ParsePort(s.Value)
	if err != nil {
		r.fail(s, s.Value, "a port, 1 to 65535")
	}
	return p
}

// id is the user or group that f names, otherwise without.
func (r *reader) id(f cmdline.Flag, otherwise uint32) uint32 {
	s := r.find(f)
	all := cmdline.Items(s.Value)
	if len(all) == 0 {
		return otherwise
	}
	n, err := strconv.ParseUint(all[0], 10, 32)
	if err != nil {
		r.fail(s, all[0], "a numeric id, 0 to 4294967295")
	}
	return uint32(n)
}

// mark is a packet's that f names. Istio reads it as a decimal number.
func (r *reader) mark(f cmdline.Flag) uint32 {
	s := r.find(f)
	n, err := strconv.ParseUint(s.Value, 10, 32)
	if err != nil || n == 0 || n&plan.OwnMarks != 0 {
		r.fail(s, s.Value, fmt.Sprintf("a mark, 1 to 4294967295, without the bits %#x, which are MeshVirt's", plan.OwnMarks))
	}
	return uint32(n)
}

func (r *reader) interception() Interception {
	s := r.find(cmdline.FlagInterception)
	switch i := Interception(s.Value); i {
	case InterceptionRedirect, InterceptionTPROXY, InterceptionNone:
		return i
	case "": // the program redirects unless it reads TPROXY
	default:
		r.fail(s, s.Value, "REDIRECT, TPROXY or NONE")
	}
	return InterceptionRedirect
}

func (r *reader) ports(s cmdline.Setting) []uint16 {
	var all []uint16
	for _, item := range cmdline.Items(s.Value) {
		p, err := plan.ParsePort(item)
		if err != nil {
			r.fail(s, item, "a port, 1 to 65535")
		} else if !slices.Contains(all, p) {
			all = append(all, p)
		}
	}
	return all
}

func (r *reader) cidrs(s cmdline.Setting) []netip.Prefix {
	var all []netip.Prefix
	for _, item := range cmdline.Items(s.Value) {
		p, err := netip.ParsePrefix(item)
		if a, bare := netip.ParseAddr(item); bare == nil && a.Zone() == "" {
			p, err = a.Prefix(a.BitLen())
		}
		if err != nil {
			r.fail(s, item, "a CIDR such as 10.0.0.0/8 or fd00::/8")
		} else if p = p.Masked(); !slices.Contains(all, p) {
			all = append(all, p)
		}
	}
	return all
}

func (r *reader) interfaces(f cmdline.Flag) []string {
	s := r.find(f)
	all := cmdline.Items(s.Value)
	for _, name := range all {
		if !plan.ValidInterface(name) {
			r.fail(s, name, "the name of a network interface")
		}
	}
	return all
}

// agentPort is that of istio-agent, which an annotation can move; there 0 switches its server off.
func (r *reader) agentPort() uint16 {
	s := cmdline.Setting{From: "annotation " + AnnotationStatusPort, Value: r.Annotations[AnnotationStatusPort]}
	if s.Value == "" || s.Value == "0" {
		return IstioAgentPort
	}
	p, err := plan.ParsePort(s.Value)
	if err != nil {
		r.fail(s, s.Value, "a port, 0 to 65535")
	}
	return p
}

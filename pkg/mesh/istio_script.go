package mesh

// Before istio-iptables was a program, a shell script of the image proxy_init wrote the rules. It
// knows short flags only and fewer of them, and Envoy takes both directions on one port.
//
// What it writes is in table nat at the usual priorities alone: PREROUTING to Envoy without a match of
// interfaces, OUTPUT but for Envoy's user, 127.0.0.1 and what -i leaves out. Our chains stand one step
// before them and decide about every packet of the guest (pkg/rules), so nothing has to be taken out of the
// script's arguments, and nothing may be put there.
type script int

// The scripts, by what they know.
const (
	noScript    script = iota
	firstScript        // before Istio 0.8: -p, -u and -i; without -i everything is redirected
	laterScript        // to 1.3: lists of ports, -k from 1.1 on
)

// scriptImage is the image, without registry and repository, that holds the scripts.
const scriptImage = "proxy_init"

func scriptOf(image string, args Args) script {
	name, _ := splitImage(image)
	_, listsPorts := args.Value(FlagIncludeInboundPorts) // as Istio's template does since 0.8
	switch {
	case name != scriptImage:
		return noScript
	case releaseOf(image).before(0, 8) || releaseOf(image) == release{} && !listsPorts:
		return firstScript
	default:
		return laterScript
	}
}

// defaults is what f stands at where the script differs from the program.
func (s script) defaults(f Flag) (string, bool) {
	all := s == firstScript && (f == FlagIncludeOutboundCIDRs || f == FlagIncludeInboundPorts)
	return "*", all
}

// adapt says of c what differs from the program's redirection.
func (s script) adapt(c *Capture, args Args, r release) {
	if s == noScript {
		return
	}
	c.TunnelPort, c.DialsLoopback = 0, true
	if _, ok := args.Value(FlagInboundPort); !ok { // 1.3 has it
		c.InboundPort = c.OutboundPort
	}
	// Health and merged metrics came with 1.1; Envoy's admin interface is on loopback.
	c.OwnPorts = nil
	if s == laterScript && !r.before(1, 1) {
		c.OwnPorts = []uint16{IstioAgentPort, IstioMetricsPort}
	}
}

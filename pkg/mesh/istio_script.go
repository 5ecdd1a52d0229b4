package mesh

import "github.com/meshvirt/meshvirt/pkg/cmdline"

// adaptToScript says of c what differs from the program's redirection where a shell script of the first releases writes the
// rules: Envoy takes both directions on one port, and serves less.
//
// What a script writes is in table nat at the usual priorities alone: PREROUTING to Envoy without a match of
// interfaces, OUTPUT but for Envoy's user, 127.0.0.1 and what -i leaves out. Our chains stand one step
// before them and decide about every packet of the guest (pkg/rules), so nothing has to be taken out of the
// script's arguments, and nothing may be put there.
func adaptToScript(c *Capture, args cmdline.Args) {
	if args.Script() == cmdline.NoScript {
		return
	}
	c.TunnelPort, c.DialsLoopback = 0, true
	if _, ok := args.Value(cmdline.FlagInboundPort); !ok { // 1.3 has it
		c.InboundPort = c.OutboundPort
	}
	// Health and merged metrics came with 1.1; Envoy's admin interface is on loopback.
	c.OwnPorts = nil
	if args.Script() == cmdline.LaterScript && !args.Release().Before(1, 1) {
		c.OwnPorts = []uint16{IstioAgentPort, IstioMetricsPort}
	}
}

// Labnode is every program of the lab that is not tested itself: the agent on each host, the
// sidecar's stand-in, and the starter of containers. In the virtual machine it is init.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"

	"github.com/meshvirt/meshvirt/test/e2e/netlab/agent"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/container"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/sidecar"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/vm"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "labnode:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if os.Getpid() == 1 && len(args) == 0 {
		return vm.Init()
	}
	if len(args) == 0 {
		return errors.New("want agent, sidecar, ztunnel or container")
	}
	flags := flag.NewFlagSet(args[0], flag.ContinueOnError)
	switch args[0] {
	case "agent":
		name := flags.String("name", "", "what the agent calls its host")
		if err := flags.Parse(args[1:]); err != nil {
			return err
		}
		return agent.Serve(*name, stdio{os.Stdin, os.Stdout})
	case "sidecar", "ztunnel":
		var cfg sidecar.Config
		flags.BoolVar(&cfg.IPv6, "ipv6", false, "listen on IPv6 too")
		flags.BoolVar(&cfg.IPv6Only, "ipv6-only", false, "listen on IPv6 alone")
		flags.BoolVar(&cfg.DNS, "dns", false, "serve DNS")
		flags.BoolVar(&cfg.Transparent, "transparent", false, "take connections by TPROXY")
		flags.BoolVar(&cfg.Quiet, "quiet", false, "tell of no connection")
		outbound := flags.Uint("outbound", 0, "port for redirected connections that leave the pod")
		inbound := flags.Uint("inbound", 0, "port for redirected connections that enter it")
		if err := flags.Parse(args[1:]); err != nil {
			return err
		}
		cfg.OutboundPort, cfg.InboundPort = uint16(*outbound), uint16(*inbound)
		if args[0] == "ztunnel" {
			return sidecar.RunZtunnel(cfg, os.Stdin, os.Stdout)
		}
		return sidecar.Run(cfg, os.Stdin, os.Stdout)
	case "container":
		return container.Exec()
	}
	return fmt.Errorf("no command %q: want agent, sidecar, ztunnel or container", args[0])
}

// stdio joins standard input and output to one connection.
type stdio struct {
	io.Reader
	io.Writer
}

func (stdio) Close() error { return os.Stdin.Close() }

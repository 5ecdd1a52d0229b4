// Command rules is the init container that writes the nftables rules of one pod: it reads the plan
// that the webhook left in MESHVIRT_PLAN, looks at the pod that it runs in, and puts one table
// (inet meshvirt) into the kernel. It needs the capability NET_ADMIN and nothing else: no file but
// /etc/resolv.conf, no program, no writable /proc. Running it again replaces the table.
//
// With -watch it is a native sidecar: it runs on, and writes again when the guest's interface appears or is another than assumed.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/meshvirt/meshvirt/pkg/keeper"
	"github.com/meshvirt/meshvirt/pkg/nft"
	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/resolv"
	"github.com/meshvirt/meshvirt/pkg/rules"
)

const name = "meshvirt-rules"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		os.Exit(1)
	}
}

// run does it all. The table is written in one transaction, so ctx matters only before it.
func run(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet(name, flag.ContinueOnError)
	flags.SetOutput(out)
	dry := flags.Bool("print", false, "print the rules as nft text instead of writing them; needs no privilege")
	on := flags.Bool("watch", false, "run on until SIGTERM and keep the rules right while interfaces come and go")
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return nil
	} else if err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("argument %q: want none, the plan comes in the environment variable %s", flags.Arg(0), plan.Env)
	}

	p, err := plan.Decode(os.Getenv(plan.Env))
	if err != nil {
		return err
	}
	if needed := p.WatchPort != 0; *on != needed && !*dry {
		return fmt.Errorf("-watch is %t, want %t for a plan with watchPort %d", *on, needed, p.WatchPort)
	} else if needed && !*dry {
		return watch(ctx, p, out)
	}
	pod, err := keeper.Observe(resolv.Conf)
	if err != nil {
		return err
	}
	r, err := rules.Build(p, pod)
	if err != nil {
		return err
	}
	if *dry {
		_, err := io.WriteString(out, r.String())
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := r.Apply(); err != nil {
		return err
	}
	_, err = fmt.Fprintln(out, summary(p, pod, r))
	return err
}

// summary says what was written.
func summary(p plan.Plan, pod rules.Pod, r nft.Ruleset) string {
	return fmt.Sprintf("%s: table inet %s: %d rules, %d set elements, mode %s, ipv6 %t",
		name, rules.Table, r.Rules(), r.Elements(), p.Mode, pod.ServesIPv6(p.Mesh))
}

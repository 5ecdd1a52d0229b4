// Conformance proves with packets what MeshVirt promises: it runs virt-launcher pods of every network
// binding, mesh, version of the mesh, backend of its rules, and mode of KubeVirt's, in every mode of
// MeshVirt's, sends each flow in both IP families, and compares what becomes of it with a table. What
// the mesh gives by itself stands beside.
//
// It ends with code 1 if a cell is not as wanted. It needs root, and what `tools/setup.sh apt guest`
// provides.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"syscall"
	"time"

	"github.com/meshvirt/meshvirt/test/e2e/netlab/netns"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "conformance: %v\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("conformance", flag.ContinueOnError)
	dir := flags.String("corpus", "", "directory of recordings; the lab's own without it")
	result := flags.String("out", "build/conformance.json", "file for the cells")
	doc := flags.String("doc", "", "file for the tables; none without it")
	machines := flags.Int("machines", 2, "virtual machines that serve as guests; 0 has namespaces instead")
	parallel := flags.Int("parallel", 4, "pods without a machine at a time")
	only := flags.String("only", "", "regular expression: only pods whose description matches")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if err := netns.Check(); err != nil {
		return err
	}
	which, err := regexp.Compile(*only)
	if err != nil {
		return err
	}
	c, err := openCorpus(*dir)
	if err != nil {
		return err
	}
	all, err := matrix(c, out)
	if err != nil {
		return err
	}
	var setups []setup
	for _, s := range all {
		if which.MatchString(s.String()) {
			setups = append(setups, s)
		}
	}
	r, err := newRunner(ctx, c)
	if err != nil {
		return err
	}
	r.machines, r.parallel = *machines, *parallel
	total := 0
	for _, s := range setups {
		total += 1 + len(s.modes())
	}
	r.done = func(l lab, n int, took time.Duration, rows []Row) {
		line := fmt.Sprintf("[%d of %d] %s, mode %s, guest %s: %.1fs", n, total, l, l.mode, l.guest, took.Seconds())
		fmt.Fprintln(out, line)
		for _, row := range rows {
			if !row.OK && l.mode != alone && row.Want != same {
				fmt.Fprintf(out, "  %s %s: want %s, got %s: %s\n", row.Flow, row.Family, row.Want, row.Got, row.Path)
			}
		}
	}
	rows, err := r.run(ctx, setups)
	if err := errors.Join(err, writeJSON(*result, rows)); err != nil {
		return err
	}
	if *doc != "" {
		if err := writeDoc(*doc, rows); err != nil {
			return err
		}
	}
	return verdict(rows, out)
}

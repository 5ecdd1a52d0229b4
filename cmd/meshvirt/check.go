package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/meshvirt/meshvirt/pkg/check"
	"github.com/meshvirt/meshvirt/pkg/inventory"
	"github.com/meshvirt/meshvirt/pkg/plan"
)

func checkCommand() *cobra.Command {
	var file, failOn string
	var output form
	var all, try bool
	var from source
	c := &cobra.Command{
		Use:   "check [-n NAMESPACE | -A | -f FILE]",
		Short: "Say what is wrong with the installation and with virtual machines",
		Long: `Say what is wrong with the installation of MeshVirt and with the virtual machines of a namespace (-n), of
all namespaces (-A) or in manifests (-f, without a cluster); what follows from it, and what to do.

It only reads, unless you --try: then the API server is asked to create a pod too, in a dry run, which shows
whether it reaches and trusts the webhook. Nothing is created.

What you may not read is said, and the rest is checked; docs/check.md has the rights that it uses, and every
code. The exit code is 1 with an error (or, by --fail-on, a warning), and if there is no cluster.`,
		Example: `  kubectl meshvirt check -A
  kubectl meshvirt check -n vms --try
  kubectl meshvirt check -n vms -o json
  kubectl meshvirt check -f vm.yaml --fail-on warning`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, _ []string) error {
			if !slices.Contains(check.Severities, check.Severity(failOn)) {
				return fmt.Errorf("--fail-on is %q, want one of %v", failOn, check.Severities)
			}
			var cluster *inventory.Cluster
			var err error
			scope := "the manifests"
			if file != "" {
				cluster, err = readManifests(file, c.InOrStdin())
			} else {
				cluster, scope, err = from.read(c.Context(), all, try)
			}
			if err != nil {
				return err
			}
			r := check.Run(cluster)
			if err := printReport(c.OutOrStdout(), output, r, scope); err != nil {
				return err
			}
			if n := r.Count(check.Error); n > 0 {
				return fmt.Errorf("found %s", counted(n, check.Error))
			}
			if n := r.Count(check.Warning); n > 0 && check.Severity(failOn) == check.Warning {
				return fmt.Errorf("found %s", counted(n, check.Warning))
			}
			return nil
		},
	}
	optionalFileFlag(c, &file)
	from.addFlags(c)
	c.Flags().BoolVarP(&all, "all-namespaces", "A", false, "look at the virtual machines of all namespaces")
	c.Flags().BoolVar(&try, "try", false, "also ask the API server to create a pod, in a dry run; for that you need the right to create pods")
	c.MarkFlagsMutuallyExclusive("filename", "all-namespaces", "namespace")
	c.MarkFlagsMutuallyExclusive("filename", "try")
	c.Flags().StringVar(&failOn, "fail-on", string(check.Error), fmt.Sprintf("severity from which on the exit code is 1: one of %v", check.Severities))
	complete(c, "fail-on", string(check.Error), string(check.Warning))
	outputFlag(c, &output, "text")
	return c
}

// readManifests reads what a file has of virtual machines, without a cluster.
func readManifests(file string, in io.Reader) (*inventory.Cluster, error) {
	b, err := read(file, in)
	if err != nil {
		return nil, err
	}
	docs, err := split(b)
	if err != nil {
		return nil, err
	}
	// Of the installation there is nothing to be seen.
	cluster := &inventory.Cluster{Now: time.Now(), Unknown: map[string]string{inventory.Configurations: "", inventory.Services: "", inventory.EndpointSlices: "", inventory.Deployments: ""}}
	var errs []error
	for n, doc := range docs {
		if err := cluster.Add(doc.JSON); err != nil {
			errs = append(errs, fmt.Errorf("document %d: %w", n+1, err))
		}
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	if len(cluster.Machines)+len(cluster.Instances)+len(cluster.Pods)+len(cluster.Namespaces) == 0 {
		return nil, errors.New("nothing to check in the manifests, want VirtualMachines, VirtualMachineInstances, their pods or namespaces")
	}
	return cluster, nil
}

// report is a check.Report in YAML or JSON.
type report struct {
	check.Report
	// Plugin is the release of this program.
	Plugin string `json:"plugin"`
	// Scope says which virtual machines were looked at.
	Scope    string `json:"scope"`
	Errors   int    `json:"errors"`
	Warnings int    `json:"warnings"`
}

func printReport(out io.Writer, output form, r check.Report, scope string) error {
	errs, warnings := r.Count(check.Error), r.Count(check.Warning)
	if output != "" {
		return marshal(out, output, report{r, plan.Release, scope, errs, warnings})
	}
	var b bytes.Buffer
	for i, f := range r.Findings {
		fmt.Fprintf(&b, "%-8s %s: %s [%s]\n", f.Severity, f.Object, oneLine(f.Message), f.Code)
		// The same again and again is said once.
		if last := i == len(r.Findings)-1; f.Fix != "" && (last || r.Findings[i+1].Fix != f.Fix) {
			fmt.Fprintf(&b, "%-8s %s\n", "", oneLine(f.Fix))
		}
	}
	seen := fmt.Sprintf("%s in %s", r.Summary, scope)
	if r.Release != "" {
		seen = fmt.Sprintf("MeshVirt %s, %s", r.Release, seen)
	}
	if len(r.Findings) > 0 {
		fmt.Fprintf(&b, "\n%s, %s. Looked at: %s.\n", counted(errs, check.Error), counted(warnings, check.Warning), seen)
	} else {
		fmt.Fprintf(&b, "All is well: %s.\n", seen)
	}
	_, err := out.Write(b.Bytes())
	return err
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

func counted(n int, s check.Severity) string {
	if n == 1 {
		return fmt.Sprintf("1 %s", s)
	}
	return fmt.Sprintf("%d %ss", n, s)
}

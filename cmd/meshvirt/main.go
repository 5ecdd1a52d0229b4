// Command meshvirt is the kubectl plugin of MeshVirt (kubectl meshvirt).
package main

import (
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/meshvirt/meshvirt/pkg/plan"
)

func main() {
	if err := run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr); err != nil {
		fmt.Fprintf(os.Stderr, "meshvirt: %v\n", err)
		os.Exit(1)
	}
}

// run executes one command line. Results go to out; errors are returned, warnings go to errOut.
func run(args []string, in io.Reader, out, errOut io.Writer) error {
	root := &cobra.Command{
		Use:           "meshvirt",
		Short:         "KubeVirt virtual machines as full members of a service mesh",
		SilenceUsage:  true,
		SilenceErrors: true,
		Annotations:   map[string]string{cobra.CommandDisplayNameAnnotation: "kubectl meshvirt"},
	}
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errOut)
	root.AddCommand(injectCommand(), versionCommand())
	return root.Execute()
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the release",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(c.OutOrStdout(), plan.Release)
			return err
		},
	}
}

// Command meshvirt is the kubectl plugin of MeshVirt (kubectl meshvirt).
package main

import (
	"fmt"
	"io"
	"os"
	"runtime"

	"github.com/spf13/cobra"

	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/templates"
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
		Use:           "kubectl-meshvirt", // the program's name: completion is written for it
		Short:         "KubeVirt virtual machines as full members of a service mesh",
		SilenceUsage:  true,
		SilenceErrors: true,
		Annotations:   map[string]string{cobra.CommandDisplayNameAnnotation: "kubectl meshvirt"},
	}
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errOut)
	root.AddCommand(injectCommand(), uninjectCommand(), explainCommand(), checkCommand(), versionCommand())
	addCompletion(root)
	return root.Execute()
}

// version is what the command of that name prints.
type version struct {
	// Version is this release. Webhook and data plane should be of the same.
	Version string `json:"version"`
	// Image is the release's data-plane image.
	Image string `json:"image"`
	// Go and Platform are what the program was built with and for.
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

func versionCommand() *cobra.Command {
	var output form
	c := &cobra.Command{
		Use:               "version",
		Short:             "Print the release",
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, _ []string) error {
			if output != "" {
				return marshal(c.OutOrStdout(), output, version{plan.Release, templates.DefaultImage, runtime.Version(), runtime.GOOS + "/" + runtime.GOARCH})
			}
			_, err := fmt.Fprintln(c.OutOrStdout(), plan.Release)
			return err
		},
	}
	outputFlag(c, &output, "the release alone")
	return c
}

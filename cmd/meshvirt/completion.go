package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

// kubectlScript is what kubectl (since 1.26) runs to complete a plugin's words: a program called
// kubectl_complete-NAME in the PATH.
const kubectlScript = `#!/bin/sh
exec kubectl meshvirt __complete "$@"
`

const completionHelp = `

kubectl itself (1.26 or later) completes "kubectl meshvirt" where its own completion is on, if a program called
kubectl_complete-meshvirt is in the PATH:

  kubectl meshvirt completion kubectl > ~/.local/bin/kubectl_complete-meshvirt
  chmod +x ~/.local/bin/kubectl_complete-meshvirt

The scripts for bash, zsh, fish and powershell complete the program's own name, kubectl-meshvirt.`

func addCompletion(root *cobra.Command) {
	root.InitDefaultCompletionCmd()
	for _, c := range root.Commands() {
		if c.Name() != "completion" {
			continue
		}
		c.Long += completionHelp
		c.AddCommand(&cobra.Command{
			Use:               "kubectl",
			Short:             "Generate the program by which kubectl completes this plugin",
			Long:              "Generate the program by which kubectl completes this plugin." + completionHelp,
			Args:              cobra.NoArgs,
			ValidArgsFunction: cobra.NoFileCompletions,
			RunE: func(c *cobra.Command, _ []string) error {
				_, err := fmt.Fprint(c.OutOrStdout(), kubectlScript)
				return err
			},
		})
	}
}

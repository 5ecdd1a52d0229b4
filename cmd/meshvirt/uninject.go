package main

import (
	"fmt"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"

	"github.com/meshvirt/meshvirt/pkg/record"
)

func uninjectCommand() *cobra.Command {
	var file string
	var output form
	c := &cobra.Command{
		Use:   "uninject -f FILE",
		Short: "Give pods back as they were before MeshVirt",
		Long: `Give pods back as they were before MeshVirt, and print all manifests.

The annotation meshvirt.io/undo of an adapted pod holds what was changed, as it was before. Without it
(the pod was adapted by hand) the guest's interface goes back to the mesh as KubeVirt and Istio of
today would write it, with a warning. A pod that was never adapted, and manifests of other kinds, are
printed as they came in. With an error in any of them nothing is printed.`,
		Example: `  kubectl get pod virt-launcher-web-abcde -o yaml | kubectl meshvirt uninject -f -
  kubectl meshvirt uninject -f adapted.yaml -o json`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, _ []string) error {
			return transform(c, file, output, func(pod *corev1.Pod) (*corev1.Pod, error) {
				before, changes, err := record.Undo(pod)
				if err != nil {
					return nil, err
				}
				warn(c.ErrOrStderr(), pod, changes.Warnings)
				if len(changes.Made) == 0 {
					fmt.Fprintf(c.ErrOrStderr(), "meshvirt: pod %s was not adapted by MeshVirt and stays as it is\n", podName(pod))
				}
				return before, nil
			})
		},
	}
	fileFlag(c, &file)
	outputFlag(c, &output, "the form of the input")
	return c
}

package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/meshvirt/meshvirt/pkg/decision"
	"github.com/meshvirt/meshvirt/pkg/plan"
)

func injectCommand() *cobra.Command {
	var file string
	var output form
	var flags adaptation
	c := &cobra.Command{
		Use:   "inject -f FILE",
		Short: "Adapt pods as the webhook would",
		Long: `Adapt pods as the webhook would, and print all manifests.

The pods must be as they reach the webhook: rendered by KubeVirt and injected by the mesh. Manifests
of other kinds are printed as they came in. With an error in any of them nothing is printed.

--mode also writes the annotation meshvirt.io/mode, so that the webhook comes to the same pod;
uninject gives back what the user had there.`,
		Example: `  kubectl meshvirt inject -f virt-launcher.yaml --vmi vmi.yaml --mode nat-proxy
  kubectl get pod virt-launcher-web-abcde -o yaml | kubectl meshvirt inject -f -`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, _ []string) error {
			a, err := flags.adapter()
			if err != nil {
				return err
			}
			return transform(c, file, output, func(pod *corev1.Pod) (*corev1.Pod, error) {
				return a.inject(pod, c.ErrOrStderr())
			})
		},
	}
	fileFlag(c, &file)
	flags.addFlags(c)
	outputFlag(c, &output, "the form of the input")
	return c
}

func (a adapter) inject(pod *corev1.Pod, notes io.Writer) (*corev1.Pod, error) {
	if a.mode == plan.Off {
		return pod, nil
	}
	adapted, report, errs := a.apply(pod)
	warn(notes, pod, report.Warnings)
	if len(errs) > 0 {
		return nil, invalid(errs)
	}
	if report.Mode == plan.Off {
		fmt.Fprintf(notes, "meshvirt: pod %s is left alone: %s: %s\n", podName(pod), report.Reason, decision.ReasonTexts[report.Reason])
	}
	return adapted, nil
}

func warn(notes io.Writer, pod *corev1.Pod, warnings []string) {
	for _, w := range warnings {
		fmt.Fprintf(notes, "meshvirt: warning: pod %s: %s\n", podName(pod), w)
	}
}

// invalid names every bad field of a pod.
func invalid(errs field.ErrorList) error {
	var all []string
	for _, e := range errs {
		all = append(all, e.Error())
	}
	return fmt.Errorf("%s", strings.Join(all, "; "))
}

package main

import (
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/yaml"

	"github.com/meshvirt/meshvirt/pkg/annotations"
	"github.com/meshvirt/meshvirt/pkg/kubevirt"
	"github.com/meshvirt/meshvirt/pkg/mutate"
	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/record"
	"github.com/meshvirt/meshvirt/pkg/templates"
)

// A form is how results are written. The empty one is each command's own.
type form string

const (
	asYAML form = "yaml"
	asJSON form = "json"
)

var forms = []string{string(asYAML), string(asJSON)}

// Set, String and Type make a form a flag's value.
func (f *form) Set(s string) error {
	if !slices.Contains(forms, s) {
		return fmt.Errorf("want one of %v", forms)
	}
	*f = form(s)
	return nil
}

func (f *form) String() string { return string(*f) }

// Type is what help shows in place of the value.
func (f *form) Type() string { return "yaml|json" }

func outputFlag(c *cobra.Command, f *form, otherwise string) {
	c.Flags().VarP(f, "output", "o", "output in YAML or JSON; without it "+otherwise)
	complete(c, "output", forms...)
}

func fileFlag(c *cobra.Command, file *string) {
	optionalFileFlag(c, file)
	_ = c.MarkFlagRequired("filename") // these fail only for a flag that does not exist
}

func optionalFileFlag(c *cobra.Command, file *string) {
	c.Flags().StringVarP(file, "filename", "f", "", `manifests in YAML or JSON, "-" for standard input`)
	_ = c.MarkFlagFilename("filename", "yaml", "yml", "json")
}

func complete(c *cobra.Command, flag string, values ...string) {
	_ = c.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
}

// adaptation is what can be said on the command line about how pods are adapted.
type adaptation struct{ vmiFile, mode, image string }

func (a *adaptation) addFlags(c *cobra.Command) {
	var modes []string
	for _, m := range plan.Modes {
		modes = append(modes, string(m))
	}
	c.Flags().StringVar(&a.vmiFile, "vmi", "", "the VirtualMachineInstance that owns the pods: its ports, networks and binding count then")
	_ = c.MarkFlagFilename("vmi", "yaml", "yml", "json")
	c.Flags().StringVar(&a.mode, "mode", "", fmt.Sprintf("mode in place of the pods' annotation: one of %v", plan.Modes))
	complete(c, "mode", modes...)
	c.Flags().StringVar(&a.image, "image", templates.DefaultImage, "data-plane image")
	complete(c, "image")
}

// adapter adapts pods, as the webhook would, with the mode asked for.
type adapter struct {
	config mutate.Config
	facts  mutate.Facts
	mode   plan.Mode // empty: by annotation
	// keepImage takes the image of containers of ours that a pod has already.
	keepImage bool
}

func (a adaptation) adapter() (adapter, error) {
	out := adapter{config: mutate.Config{Image: templates.Image{Name: a.image}}, mode: plan.Mode(a.mode)}
	if a.mode != "" && !slices.Contains(plan.Modes, out.mode) {
		return out, fmt.Errorf("--mode is %q, want one of %v", a.mode, plan.Modes)
	}
	if a.vmiFile != "" {
		vmi, err := readVMI(a.vmiFile)
		if err != nil {
			return out, fmt.Errorf("--vmi: %w", err)
		}
		out.facts.VMI = vmi
	}
	return out, nil
}

// apply leaves the pod that goes in as it is.
func (a adapter) apply(pod *corev1.Pod) (*corev1.Pod, mutate.Report, field.ErrorList) {
	asked := pod
	if a.mode != "" {
		// The annotation goes into the result, so that the webhook later comes to the same pod.
		asked = pod.DeepCopy()
		if asked.Annotations == nil {
			asked.Annotations = map[string]string{}
		}
		asked.Annotations[annotations.Mode] = string(a.mode)
	}
	out, report, errs := mutate.Apply(asked, a.facts, a.config)
	if len(errs) > 0 || report.Mode == plan.Off {
		return pod, report, errs
	}
	record.Remember(pod, out) // uninject then gives the user's own mode back
	return out, report, nil
}

func read(file string, in io.Reader) ([]byte, error) {
	b, err := []byte(nil), error(nil)
	if file == "-" {
		b, err = io.ReadAll(in)
	} else {
		b, err = os.ReadFile(file)
	}
	if err != nil {
		return nil, fmt.Errorf("-f: %w", err)
	}
	return b, nil
}

func readVMI(file string) (*kubevirt.VMI, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	if b, err = yaml.YAMLToJSON(b); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return kubevirt.ParseVMI(b)
}

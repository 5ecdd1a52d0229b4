package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	jsonpatch "github.com/evanphx/json-patch/v5"
	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/meshvirt/meshvirt/pkg/annotations"
	"github.com/meshvirt/meshvirt/pkg/mutate"
	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/templates"
)

func injectCommand() *cobra.Command {
	var file, vmiFile, mode, image string
	c := &cobra.Command{
		Use:   "inject -f FILE",
		Short: "Adapt pods as the webhook would",
		Long: `Adapt pods as the webhook would, and print all manifests.

The pods must be as they reach the webhook: rendered by KubeVirt and injected by the mesh. Manifests
of other kinds are printed as they came in. With an error in any of them nothing is printed.`,
		Example: `  kubectl meshvirt inject -f virt-launcher.yaml --vmi vmi.yaml --mode nat-proxy
  kubectl get pod virt-launcher-web-abcde -o yaml | kubectl meshvirt inject -f -`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			i := injector{config: mutate.Config{Image: templates.Image{Name: image}}, warnings: c.ErrOrStderr()}
			if mode != "" && !slices.Contains(plan.Modes, plan.Mode(mode)) {
				return fmt.Errorf("--mode is %q, want one of %v", mode, plan.Modes)
			}
			i.mode = plan.Mode(mode)
			if vmiFile != "" {
				vmi, err := readVMI(vmiFile)
				if err != nil {
					return fmt.Errorf("--vmi: %w", err)
				}
				i.facts.VMI = vmi
			}
			in, err := read(file, c.InOrStdin())
			if err != nil {
				return fmt.Errorf("-f: %w", err)
			}
			out, err := i.inject(in)
			if err != nil {
				return err
			}
			_, err = c.OutOrStdout().Write(out)
			return err
		},
	}
	c.Flags().StringVarP(&file, "filename", "f", "", `manifests in YAML or JSON, "-" for standard input`)
	c.Flags().StringVar(&vmiFile, "vmi", "", "the VirtualMachineInstance that owns the pods: its ports, networks and binding count then")
	c.Flags().StringVar(&mode, "mode", "", fmt.Sprintf("mode in place of the pods' annotation: one of %v", plan.Modes))
	c.Flags().StringVar(&image, "image", templates.DefaultImage, "data-plane image")
	_ = c.MarkFlagRequired("filename") // fails only for a flag that does not exist
	return c
}

func read(file string, in io.Reader) ([]byte, error) {
	if file == "-" {
		return io.ReadAll(in)
	}
	return os.ReadFile(file)
}

func readVMI(file string) (*mutate.VMI, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	if b, err = yaml.YAMLToJSON(b); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return mutate.ParseVMI(b)
}

// injector adapts manifests.
type injector struct {
	config   mutate.Config
	facts    mutate.Facts
	mode     plan.Mode // empty: by annotation
	warnings io.Writer
}

// inject gives all manifests, adapted, in the form (YAML or JSON) that they came in.
func (i injector) inject(in []byte) ([]byte, error) {
	docs, err := split(in)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	var errs []error
	for n, doc := range docs {
		if doc.JSON, err = i.document(doc.JSON); err != nil {
			errs = append(errs, fmt.Errorf("document %d: %w", n+1, err))
			continue
		}
		if err := doc.write(&out, n > 0); err != nil {
			errs = append(errs, fmt.Errorf("document %d: %w", n+1, err))
		}
	}
	return out.Bytes(), errors.Join(errs...)
}

// document adapts a pod or every pod of a list, and returns anything else as it is.
func (i injector) document(doc []byte) ([]byte, error) {
	var meta struct {
		Kind  string            `json:"kind"`
		Items []json.RawMessage `json:"items"`
	}
	if err := json.Unmarshal(doc, &meta); err != nil {
		return nil, fmt.Errorf("want a Kubernetes object: %w", err)
	}
	switch meta.Kind {
	case "":
		return nil, errors.New("kind is missing, want a Kubernetes object")
	case "Pod":
		return i.pod(doc)
	case "List", "PodList":
		var errs []error
		for n, item := range meta.Items {
			adapted, err := i.document(item)
			if err != nil {
				errs = append(errs, fmt.Errorf("items[%d]: %w", n, err))
				continue
			}
			meta.Items[n] = adapted
		}
		if len(errs) > 0 {
			return nil, errors.Join(errs...)
		}
		items, err := json.Marshal(meta.Items)
		if err != nil {
			return nil, err
		}
		return jsonpatch.MergePatch(doc, fmt.Appendf(nil, `{"items":%s}`, items))
	}
	return doc, nil
}

func (i injector) pod(doc []byte) ([]byte, error) {
	var pod corev1.Pod
	if err := json.Unmarshal(doc, &pod); err != nil {
		return nil, fmt.Errorf("read pod: %w", err)
	}
	name := pod.Name
	if name == "" {
		name = pod.GenerateName
	}
	before := pod.DeepCopy()
	if i.mode == plan.Off {
		return doc, nil
	}
	if i.mode != "" {
		// The annotation goes into the result, so that the webhook later comes to the same pod.
		if pod.Annotations == nil {
			pod.Annotations = map[string]string{}
		}
		pod.Annotations[annotations.Mode] = string(i.mode)
	}
	adapted, report, errs := mutate.Apply(&pod, i.facts, i.config)
	for _, w := range report.Warnings {
		fmt.Fprintf(i.warnings, "meshvirt: warning: pod %s: %s\n", name, w)
	}
	if len(errs) > 0 {
		var all []string
		for _, e := range errs {
			all = append(all, e.Error())
		}
		return nil, fmt.Errorf("pod %s: %s", name, strings.Join(all, "; "))
	}
	if report.Mode == plan.Off {
		fmt.Fprintf(i.warnings, "meshvirt: pod %s is left alone: %s: %s\n", name, report.Reason, mutate.ReasonTexts[report.Reason])
		return doc, nil
	}
	patch, err := json.Marshal(mutate.Patch(before, adapted))
	if err != nil {
		return nil, err
	}
	p, err := jsonpatch.DecodePatch(patch)
	if err != nil {
		return nil, err
	}
	return p.Apply(doc)
}

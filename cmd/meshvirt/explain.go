package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/meshvirt/meshvirt/pkg/annotations"
	"github.com/meshvirt/meshvirt/pkg/decision"
	"github.com/meshvirt/meshvirt/pkg/drawing"
	"github.com/meshvirt/meshvirt/pkg/mutate"
	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/record"
	"github.com/meshvirt/meshvirt/pkg/rules"
	"github.com/meshvirt/meshvirt/pkg/templates"
	"github.com/meshvirt/meshvirt/pkg/walk"
)

func explainCommand() *cobra.Command {
	var file string
	var output form
	var flags adaptation
	var from source
	var ipv6 bool
	c := &cobra.Command{
		Use:   "explain {[pod/]NAME | vmi/NAME | vm/NAME | -f FILE}",
		Short: "Say what MeshVirt does to pods, why, and the way of their packets",
		Long: `Say what MeshVirt does to pods and why: the mode and its reason, every change, every warning, the
packets' way hop by hop, and the nftables rules. For a pod that is left alone: why, and what you can do.

A pod of the cluster is named, or its virtual machine: then it is the newest pod that has not ended, the target
while the machine migrates. It is explained with what the webhook knows: the VirtualMachineInstance, the
namespace's labels, the API server's version, the webhook's own settings. What you may not read of these is said,
and the rest goes on. Nothing is changed.

By -f the pods are read from manifests, without a cluster. They must be as they reach the webhook, or as it made
them. Facts that only the running pod shows are assumed, and the assumptions are named. The exit code is 1 if a
pod is invalid; every bad field is then named on standard error.`,
		Example: `  kubectl meshvirt explain -n vms virt-launcher-web-abcde
  kubectl meshvirt explain -n vms vmi/web
  kubectl meshvirt explain -n vms vm/web --mode nat-proxy -o yaml
  kubectl meshvirt explain -f virt-launcher.yaml --vmi vmi.yaml --mode nat-proxy --ipv6`,
		ValidArgsFunction: func(c *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 || c.Flags().Changed("filename") {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return completions(func(ctx context.Context) ([]string, error) { return from.targets(ctx, typed) })
		},
		RunE: func(c *cobra.Command, args []string) error {
			a, err := flags.adapter()
			if err != nil {
				return err
			}
			t, err := asked(args, c.Flags().Changed("filename"), from.set(), flags.vmiFile != "")
			if err != nil {
				return err
			}
			a.keepImage = !c.Flags().Changed("image")
			assumed := rules.Pod{IPv6: ipv6, Nameservers: []netip.Addr{placeholderNameserver}}
			var all []explanation
			if t == nil {
				in, e := read(file, c.InOrStdin())
				if e != nil {
					return e
				}
				all, err = a.explain(in, assumed)
			} else {
				f, e := from.find(c.Context(), *t)
				if e != nil {
					return e
				}
				all, err = a.explainFound(f, assumed)
			}
			return errors.Join(printAll(c.OutOrStdout(), output, all), err)
		},
	}
	optionalFileFlag(c, &file)
	from.addFlags(c)
	flags.addFlags(c)
	c.Flags().BoolVar(&ipv6, "ipv6", false, "assume that the mesh serves IPv6 in the pod; of one that runs with IPv6 alone it is known")
	outputFlag(c, &output, "text")
	return c
}

// asked gives what is named in the cluster, nil if it is manifests. set are the cluster's flags that are set.
func asked(args []string, manifests bool, set []string, vmi bool) (*target, error) {
	switch {
	case manifests == (len(args) > 0), len(args) > 1:
		return nil, errors.New("want one pod (NAME or pod/NAME), one virtual machine (vmi/NAME or vm/NAME), or manifests (-f FILE)")
	case manifests && len(set) > 0:
		return nil, fmt.Errorf("-f reads manifests and asks no cluster: leave out %s, or name a pod in place of -f", strings.Join(set, " "))
	case manifests:
		return nil, nil
	case vmi:
		return nil, errors.New("--vmi goes with -f: of a pod in the cluster the VirtualMachineInstance is read there")
	}
	t, err := parseTarget(args[0])
	return &t, err
}

// explanation says all about one pod.
type explanation struct {
	Namespace string `json:"namespace,omitempty"`
	Pod       string `json:"pod"`
	// Chosen says which pod it is of the virtual machine that was asked for; empty if the pod was.
	Chosen string `json:"chosen,omitempty"`
	// Mode is off for a pod that is left alone.
	Mode   plan.Mode       `json:"mode"`
	Reason decision.Reason `json:"reason"`
	// Why is the reason's text.
	Why  string `json:"why"`
	Mesh string `json:"mesh,omitempty"`
	// Advice is what the user can do about a pod that is left alone.
	Advice string `json:"advice,omitempty"`
	// Errors name the bad fields of an invalid pod.
	Errors   []string `json:"errors,omitempty"`
	Warnings []string `json:"warnings,omitempty"`
	Changes  []string `json:"changes,omitempty"`
	// Unknown says what could not be read of the cluster, and why.
	Unknown []string `json:"unknown,omitempty"`
	// Assumed are facts on which Path and Rules rest and which only the running pod shows.
	Assumed []string `json:"assumed,omitempty"`
	// Path is a drawing of the packets' way (package drawing).
	Path string     `json:"path,omitempty"`
	Plan *plan.Plan `json:"plan,omitempty"`
	// Rules is the nftables table in nft's language.
	Rules string `json:"rules,omitempty"`
}

// explain explains every pod of the manifests. The error tells of invalid ones, which are explained too.
func (a adapter) explain(in []byte, assumed rules.Pod) (all []explanation, err error) {
	docs, err := split(in)
	if err != nil {
		return nil, err
	}
	var errs []error
	for n, doc := range docs {
		err := doc.eachPod(func(raw []byte, pod *corev1.Pod) ([]byte, error) {
			x, err := a.explainPod(pod, assumed)
			all = append(all, x)
			return raw, err
		})
		if err != nil {
			errs = append(errs, fmt.Errorf("document %d: %w", n+1, err))
		}
	}
	if len(all)+len(errs) == 0 {
		return nil, errors.New("no pod in the manifests, want a virt-launcher pod (kubectl get pod -o yaml)")
	}
	return all, errors.Join(errs...)
}

// explainFound explains a pod of the cluster.
func (a adapter) explainFound(f found, assumed rules.Pod) ([]explanation, error) {
	a.facts, a.config.DefaultMode = f.facts, f.config.DefaultMode
	if a.keepImage {
		a.config.Image.Name = f.config.Image.Name
	}
	if record.StatusOf(f.pod).Mode != "" {
		a.facts = asAdapted(f.facts)
	}
	x, err := a.explainPod(f.pod, assumed)
	x.Chosen, x.Unknown = f.chosen, f.unknown
	if err != nil {
		err = fmt.Errorf("pod %s: %w", f.pod.Name, err)
	}
	return []explanation{x}, err
}

// asAdapted leaves out what counts for the next pod only: a pod has the annotations that its VMI had when it was created,
// and its namespace had not opted out.
func asAdapted(facts mutate.Facts) mutate.Facts {
	facts.NamespaceLabels = maps.Clone(facts.NamespaceLabels)
	delete(facts.NamespaceLabels, annotations.Inject)
	if facts.VMI != nil {
		vmi := *facts.VMI
		vmi.Annotations = nil
		facts.VMI = &vmi
	}
	return facts
}

func (a adapter) explainPod(pod *corev1.Pod, assumed rules.Pod) (explanation, error) {
	if status := record.StatusOf(pod); status.Reason == decision.ConfiguredDefault { // as it was configured then
		a.config.DefaultMode = status.Mode
	} else if status.Mode != "" {
		a.config.DefaultMode = plan.Auto
	}
	for _, c := range pod.Spec.InitContainers {
		if !a.keepImage {
			break
		}
		switch c.Name { // what the cluster's webhook was configured with is no change
		case templates.RulesName:
			a.config.Image.Name, a.config.Image.RulesResources = c.Image, c.Resources
		case templates.ProxyName:
			a.config.Image.ProxyResources = c.Resources
		}
	}
	_, report, errs := a.apply(pod)
	x := explanation{
		Namespace: pod.Namespace, Pod: podName(pod),
		Mode: report.Mode, Reason: report.Reason, Why: decision.ReasonTexts[report.Reason], Mesh: report.Mesh,
		Warnings: report.Warnings, Changes: report.Changes, Plan: report.Plan,
	}
	if report.Mode == plan.Off {
		x.Advice = decision.Advice(report.Reason) + flagHints[report.Reason]
	}
	if len(errs) > 0 {
		for _, e := range errs {
			x.Errors = append(x.Errors, e.Error())
		}
		return x, invalid(errs)
	}
	if report.Mode == plan.Process {
		x.Path = drawing.OfProcess()
	}
	if report.Plan == nil {
		return x, nil
	}
	ips := addresses(pod, *report.Plan)
	if only(ips, netip.Addr.Is6) {
		assumed.IPv6, assumed.Nameservers = true, []netip.Addr{placeholderNameserver6}
	}
	table, err := rules.Build(*report.Plan, assumed)
	if err != nil {
		return x, fmt.Errorf("build the rules: %w", err)
	}
	x.Rules, x.Assumed = table.String(), assumptions(*report.Plan, assumed, ips)
	if x.Path, err = drawing.Of(walk.Pod{Plan: *report.Plan, Observed: assumed, IPs: ips, BridgeNF: true}); err != nil {
		return x, fmt.Errorf("draw the packets' way: %w", err)
	}
	return x, nil
}

// flagHints say which flags help to try what the advice names.
var flagHints = map[decision.Reason]string{
	decision.OptedOut:           " --mode tries one here.",
	decision.NoVirtualInterface: " --vmi gives the VMI here.",
}

func printAll(out io.Writer, output form, all []explanation) error {
	for n, x := range all {
		if output == "" {
			if n > 0 {
				fmt.Fprintln(out)
			}
			fmt.Fprint(out, x.String())
			continue
		}
		if n > 0 && output == asYAML {
			fmt.Fprintln(out, "---")
		}
		if err := marshal(out, output, x); err != nil {
			return err
		}
	}
	return nil
}

// String is the explanation for people.
func (x explanation) String() string {
	var b strings.Builder
	name := x.Pod
	if x.Namespace != "" {
		name = x.Namespace + "/" + name
	}
	fmt.Fprintf(&b, "pod %s\n", name)
	if x.Chosen != "" {
		fmt.Fprintf(&b, "  chosen  %s\n", x.Chosen)
	}
	fmt.Fprintf(&b, "  mode    %s\n  reason  %s: %s\n", x.Mode, x.Reason, x.Why)
	if x.Mesh != "" {
		fmt.Fprintf(&b, "  mesh    %s\n", x.Mesh)
	}
	if x.Advice != "" {
		fmt.Fprintf(&b, "  advice  %s\n", x.Advice)
	}
	section := func(title string, lines []string) {
		if len(lines) > 0 {
			fmt.Fprintf(&b, "\n%s\n  %s\n", title, strings.Join(lines, "\n  "))
		}
	}
	section("errors", x.Errors)
	section("not known", x.Unknown)
	section("warnings", x.Warnings)
	section("changes", x.Changes)
	section("assumed, since only the running pod shows it", x.Assumed)
	if x.Path != "" {
		section("the packets' way", strings.Split(strings.TrimSuffix(x.Path, "\n"), "\n"))
	}
	if x.Rules != "" {
		section("rules", strings.Split(strings.TrimSuffix(x.Rules, "\n"), "\n"))
	}
	return blankLines.Replace(b.String())
}

// blankLines takes the indentation from lines with nothing else.
var blankLines = strings.NewReplacer("\n  \n", "\n\n")

// marshal prints v, which goes by its JSON names in both forms.
func marshal(out io.Writer, output form, v any) error {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(v); err != nil {
		return err
	}
	text := b.Bytes()
	if output == asYAML {
		var err error
		if text, err = yaml.JSONToYAML(text); err != nil {
			return err
		}
	}
	_, err := out.Write(text)
	return err
}

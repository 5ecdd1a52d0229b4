package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/meshvirt/meshvirt/pkg/decision"
	"github.com/meshvirt/meshvirt/pkg/drawing"
	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/rules"
	"github.com/meshvirt/meshvirt/pkg/templates"
	"github.com/meshvirt/meshvirt/pkg/walk"
)

// placeholderNameserver is the DNS server's address in most clusters that kubeadm made. Which the
// pod really has shows in its /etc/resolv.conf only.
var placeholderNameserver = netip.MustParseAddr("10.96.0.10")

func explainCommand() *cobra.Command {
	var file string
	var output form
	var flags adaptation
	var ipv6 bool
	c := &cobra.Command{
		Use:   "explain -f FILE",
		Short: "Say what MeshVirt does to pods, why, and the way of their packets",
		Long: `Say what MeshVirt does to pods and why: the mode and its reason, every change, every warning, the
packets' way hop by hop, and the nftables rules. For a pod that is left alone: why, and what you can do.

The pods must be as they reach the webhook, or as it made them. Facts that only the running pod shows are
assumed, and the assumptions are named. The exit code is 1 if a pod is invalid; every bad field is then
named on standard error.`,
		Example: `  kubectl get pod virt-launcher-web-abcde -o yaml | kubectl meshvirt explain -f -
  kubectl meshvirt explain -f virt-launcher.yaml --vmi vmi.yaml --mode nat-proxy --ipv6`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, _ []string) error {
			a, err := flags.adapter()
			if err != nil {
				return err
			}
			in, err := read(file, c.InOrStdin())
			if err != nil {
				return err
			}
			a.keepImage = !c.Flags().Changed("image")
			all, err := a.explain(in, rules.Pod{IPv6: ipv6, Nameservers: []netip.Addr{placeholderNameserver}})
			return errors.Join(printAll(c.OutOrStdout(), output, all), err)
		},
	}
	fileFlag(c, &file)
	flags.addFlags(c)
	c.Flags().BoolVar(&ipv6, "ipv6", false, "assume that the mesh serves IPv6 in the pod")
	outputFlag(c, &output, "text")
	return c
}

// explanation says all about one pod.
type explanation struct {
	Namespace string `json:"namespace,omitempty"`
	Pod       string `json:"pod"`
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

func (a adapter) explainPod(pod *corev1.Pod, assumed rules.Pod) (explanation, error) {
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
	table, err := rules.Build(*report.Plan, assumed)
	if err != nil {
		return x, fmt.Errorf("build the rules: %w", err)
	}
	x.Rules, x.Assumed = table.String(), assumptions(*report.Plan, assumed)
	if x.Path, err = drawing.Of(walk.Pod{Plan: *report.Plan, Observed: assumed, BridgeNF: true}); err != nil {
		return x, fmt.Errorf("draw the packets' way: %w", err)
	}
	return x, nil
}

func assumptions(p plan.Plan, pod rules.Pod) (all []string) {
	found := "nothing looks for another, see annotation meshvirt.io/watch"
	if p.WatchPort != 0 {
		found = "meshvirt-rules looks for another"
	}
	if p.Assumed.Interfaces {
		all = append(all, fmt.Sprintf("the guest is behind %s, KubeVirt's default: %s", strings.Join(p.Interfaces, ","), found))
	}
	if p.Assumed.Guest {
		all = append(all, fmt.Sprintf("the guest is at %s and %s, KubeVirt's defaults: %s", p.Guest.IPv4, p.Guest.IPv6, found))
	}
	switch {
	case p.Mesh.DualStack: // the plan knows
	case pod.IPv6:
		all = append(all, "the mesh serves IPv6 too (--ipv6): its init put ::6 on the loopback device")
	default:
		all = append(all, "the mesh serves IPv4 only: its init put no ::6 on the loopback device (--ipv6 assumes that it did)")
	}
	if p.Mesh.DNS != nil && !p.Mesh.DNS.All {
		all = append(all, fmt.Sprintf("the pod's nameserver is %s: a placeholder, /etc/resolv.conf of the pod decides", placeholderNameserver))
	}
	switch p.Mode {
	case plan.Native:
		all = append(all, "KubeVirt's rules are those of its Istio mode: the VMI has the annotation sidecar.istio.io/inject")
	case plan.TProxy:
		all = append(all, "packets of bridges pass the IP hooks (bridge-nf-call-iptables), as on nodes of Kubernetes")
	}
	return all
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
	fmt.Fprintf(&b, "pod %s\n  mode    %s\n  reason  %s: %s\n", name, x.Mode, x.Reason, x.Why)
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

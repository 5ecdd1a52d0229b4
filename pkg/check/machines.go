package check

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/meshvirt/meshvirt/pkg/annotations"
	"github.com/meshvirt/meshvirt/pkg/inventory"
	"github.com/meshvirt/meshvirt/pkg/kubevirt"
	"github.com/meshvirt/meshvirt/pkg/mutate"
	"github.com/meshvirt/meshvirt/pkg/plan"
)

// namespaces looks at those with virtual machines.
func namespaces(v *view) (all []Finding) {
	for _, ns := range v.Namespaces {
		object := inventory.Object{Kind: "Namespace", Name: ns.Name}
		var adapted, ruled int // how many want to be, and how many of these have our container that writes rules
		for _, m := range slices.Concat(v.Machines, v.Instances) {
			if m.Namespace == ns.Name && v.injects(m) && !v.optedOut(m) {
				adapted++
				if v.ruled(m) {
					ruled++
				}
			}
		}
		for _, l := range v.launchers {
			if l.pod.Namespace == ns.Name && l.report.Mode != plan.Off {
				adapted++
				if l.report.Plan != nil {
					ruled++
				}
			}
		}
		if value, ok := ns.Labels[annotations.Inject]; ok && value != mutate.OptedOutValue {
			all = append(all, finding(NoEffect, object, fmt.Sprintf("its label %s is %q and has no effect: virtual machines are adapted without it", annotations.Inject, value),
				fmt.Sprintf("Remove the label, or set it to %q to leave the namespace out.", mutate.OptedOutValue)))
		}
		if adapted > 0 && !v.called(ns.Name) && ns.Labels[annotations.Inject] != mutate.OptedOutValue {
			all = append(all, finding(NamespaceLeftOut, object, "the namespaceSelector of MeshVirt's webhook leaves it out, and the mesh injects virtual machines here: they stay as the mesh alone makes them",
				fmt.Sprintf("Run them in another namespace, or label this one %s=%s if that is what you want.", annotations.Inject, mutate.OptedOutValue)))
			continue
		}
		if level := mutate.RefusingLevel(ns.Labels); level != "" && ruled > 0 {
			all = append(all, finding(PodSecurity, object, fmt.Sprintf("it enforces Pod Security level %s, which refuses capability NET_ADMIN of MeshVirt's init container: virtual machines do not start or migrate", level),
				fmt.Sprintf("kubectl label namespace %s %s=privileged --overwrite; or leave it out by %s=%s.", ns.Name, mutate.PodSecurity, annotations.Inject, mutate.OptedOutValue)))
		}
	}
	return all
}

// ruled reports whether the machine, which is to be adapted, gets the container that writes rules.
func (v *view) ruled(m inventory.Machine) bool {
	parsed, _, _ := annotations.Parse(m.Annotations, nil)
	return parsed.Mode != plan.Process && (len(parsed.Interfaces) > 0 || m.VMI != nil && m.VMI.Binding == kubevirt.BindingMasquerade)
}

// settings looks at what users set, before a pod is made of it.
func settings(v *view) (all []Finding) {
	templates := map[string]inventory.Machine{}
	for _, m := range v.Machines {
		templates[m.Namespace+"/"+m.Name] = m
		all = append(all, misplaced(m)...)
		all = append(all, v.parse(m, m.Annotations, m.Labels, field.NewPath("spec", "template", "metadata"))...)
	}
	for _, m := range v.Instances {
		// What the template has is told there.
		owner := templates[m.Namespace+"/"+m.Owner]
		all = append(all, v.parse(m, without(m.Annotations, owner.Annotations), without(m.Labels, owner.Labels), field.NewPath("metadata"))...)
	}
	return all
}

func without(all, told map[string]string) map[string]string {
	rest := maps.Clone(all)
	maps.DeleteFunc(rest, func(k, value string) bool { was, ok := told[k]; return ok && was == value })
	return rest
}

func misplaced(m inventory.Machine) (all []Finding) {
	for _, key := range slices.Sorted(maps.Keys(m.Own)) {
		if strings.HasPrefix(key, annotations.Domain) && m.Annotations[key] != m.Own[key] && m.Labels[key] != m.Own[key] {
			all = append(all, finding(NoEffect, m.Object, fmt.Sprintf("metadata has %s, where it has no effect: KubeVirt gives the pod what is in spec.template.metadata", key),
				"Move it there, and restart the virtual machine."))
		}
	}
	return all
}

func (v *view) parse(m inventory.Machine, set, labels map[string]string, path *field.Path) (all []Finding) {
	parsed, warnings, errs := annotations.Parse(set, path.Child("annotations"))
	for _, err := range errs {
		all = append(all, finding(InvalidAnnotation, m.Object, err.Error(), "Set such a value, or remove the annotation (docs/annotations.md); until then the pod is refused."))
	}
	for _, w := range warnings {
		all = append(all, finding(NoEffect, m.Object, w, "Correct the key, or remove it."))
	}
	if value, ok := labels[annotations.Inject]; ok && value != "true" && value != "false" {
		all = append(all, finding(NoEffect, m.Object, fmt.Sprintf(`%s is %q, want "true" or "false"`, path.Child("labels").Key(annotations.Inject), value), "Set one of these, or remove the label."))
	}
	sidecar := ""
	switch {
	case parsed.Mode == plan.NATProxy || parsed.Mode == plan.TProxy:
		sidecar = "mode " + string(parsed.Mode)
	case parsed.Watch == annotations.WatchTrue:
		sidecar = annotations.Watch
	}
	if v.oldServer && sidecar != "" && v.injects(m) && !v.optedOut(m) {
		all = append(all, finding(ModeUnavailable, m.Object, fmt.Sprintf("%s needs native sidecars, and the API server is %s: the pod is refused", sidecar, v.Server.GitVersion),
			"Upgrade Kubernetes to 1.29 or later, or use mode rules."))
	}
	return all
}

// refusals gives what KubeVirt says of pods that it could not create because of us.
func refusals(v *view) (all []Finding) {
	for _, m := range v.Instances {
		fix := ""
		switch {
		case strings.Contains(m.Refusal, "violates PodSecurity") && strings.Contains(m.Refusal, `"meshvirt-`):
			fix = fmt.Sprintf("Label the namespace %s=privileged, or set %s: off.", mutate.PodSecurity, annotations.Mode)
		case strings.Contains(m.Refusal, "failed calling webhook") && strings.Contains(m.Refusal, inventory.WebhookName):
			fix = "The webhook did not answer: see what is said here of its Service and its configuration; KubeVirt tries again."
		case strings.Contains(m.Refusal, inventory.WebhookName):
			fix = "Correct what the message names; KubeVirt tries again."
		default:
			continue
		}
		all = append(all, finding(Refused, m.Object, m.Refusal, fix))
	}
	return all
}

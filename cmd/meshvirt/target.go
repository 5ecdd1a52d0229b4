package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshvirt/meshvirt/pkg/check"
	"github.com/meshvirt/meshvirt/pkg/inventory"
	"github.com/meshvirt/meshvirt/pkg/kubevirt"
	"github.com/meshvirt/meshvirt/pkg/mutate"
)

// launcherLabel selects the pods of virtual machines.
const launcherLabel = "kubevirt.io=virt-launcher"

// target is what a user names in a cluster: a pod, or a virtual machine.
type target struct{ resource, name string }

// kinds are the words for resources, as kubectl knows them.
var kinds = map[string]string{
	"po": inventory.Pods, "pod": inventory.Pods, "pods": inventory.Pods,
	"vm": inventory.Machines, "vms": inventory.Machines, "virtualmachine": inventory.Machines, "virtualmachines": inventory.Machines,
	"vmi": inventory.Instances, "vmis": inventory.Instances, "virtualmachineinstance": inventory.Instances, "virtualmachineinstances": inventory.Instances,
}

// resourceOf gives "" for a word that is none of kinds. "kubectl get -o name" says the group too.
func resourceOf(kind string) string {
	return kinds[strings.TrimSuffix(strings.ToLower(kind), ".kubevirt.io")]
}

func parseTarget(arg string) (target, error) {
	kind, name, ok := strings.Cut(arg, "/")
	if !ok {
		kind, name = "pod", arg
	}
	t := target{resourceOf(kind), name}
	if t.resource == "" || name == "" || strings.Contains(name, "/") {
		return t, fmt.Errorf("%q is neither a pod (NAME or pod/NAME) nor a virtual machine (vmi/NAME or vm/NAME)", arg)
	}
	return t, nil
}

// in names the target for people, such as "VirtualMachine vms/web".
func (t target) in(namespace string) string {
	return inventory.Object{Kind: byName(t.resource).Kind, Namespace: namespace, Name: t.name}.String()
}

// targets completes what a user has typed of one. Of pods and virtual machines together it gives what it may see.
func (s *source) targets(ctx context.Context, typed string) (all []string, err error) {
	kind, _, named := strings.Cut(typed, "/")
	if named && resourceOf(kind) == "" {
		return nil, nil
	}
	namespace, _, err := s.config.Namespace()
	if err != nil {
		return nil, err
	}
	add := func(prefix, resource string) error {
		o := metav1.ListOptions{}
		if resource == inventory.Pods {
			o.LabelSelector = launcherLabel
		}
		names, err := s.names(ctx, resource, namespace, o)
		for _, name := range names {
			all = append(all, prefix+name)
		}
		return err
	}
	if named {
		err = add(kind+"/", resourceOf(kind))
		return all, err
	}
	if errs := []error{add("", inventory.Pods), add("vmi/", inventory.Instances)}; errs[0] != nil && errs[1] != nil {
		return nil, errors.Join(errs...)
	}
	return all, nil
}

// found is a pod of a cluster, and what admission knows beyond it.
type found struct {
	pod    *corev1.Pod
	chosen string // which it is of a virtual machine's; empty if it was named itself
	facts  mutate.Facts
	config mutate.Config
	// unknown says what could not be read, and why. Of the VMI the facts say it.
	unknown []string
}

// find reads the pod, and then what there is around it. Only without a pod it fails.
func (s *source) find(ctx context.Context, t target) (found, error) {
	r, namespace, err := s.connect(ctx)
	if err != nil {
		return found{}, err
	}
	var f found
	if t.resource == inventory.Pods {
		f.pod, err = r.pod(ctx, namespace, t)
	} else {
		f.pod, f.chosen, err = r.launcher(ctx, namespace, t)
	}
	if err != nil {
		return found{}, err
	}
	f.facts.VMI, f.facts.Unknown = r.owner(ctx, f.pod)
	if err := r.get(ctx, inventory.Namespaces, "", namespace); err != nil {
		r.Unknown[inventory.Namespaces] = err.Error()
	}
	for _, ns := range r.Namespaces {
		f.facts.NamespaceLabels = ns.Labels
	}
	f.facts.NoNativeSidecars = check.NoNativeSidecars(r.Cluster)
	r.webhook(ctx)
	f.config, f.unknown = check.Config(r.Cluster), r.unknowns(namespace)
	return f, nil
}

func (r reader) pod(ctx context.Context, namespace string, t target) (*corev1.Pod, error) {
	switch err := r.fetch(ctx, t.resource, namespace, t.name); {
	case apierrors.IsNotFound(err):
		return nil, fmt.Errorf("there is no %s: kubectl get pods -n %s -l %s lists those of virtual machines; say vmi/%s if that is one's name",
			t.in(namespace), namespace, launcherLabel, t.name)
	case err != nil:
		return nil, unreadable(t.in(namespace), err)
	}
	return &r.Pods[0], nil
}

// launcher gives the pod of a virtual machine, and says which it is of several.
func (r reader) launcher(ctx context.Context, namespace string, t target) (*corev1.Pod, string, error) {
	vmi := target{inventory.Instances, t.name}.in(namespace)
	switch err := r.fetch(ctx, inventory.Instances, namespace, t.name); {
	case notServed(err):
		return nil, "", fmt.Errorf("there is no %s: %w; a pod can be named itself", t.in(namespace), kubevirt.ErrNotServed)
	case apierrors.IsNotFound(err), err == nil && t.resource == inventory.Machines && r.Instances[0].Owner != t.name:
		return nil, "", r.notRunning(ctx, namespace, t)
	case err != nil:
		return nil, "", unreadable(vmi, err)
	}
	if err := r.fetchAll(ctx, inventory.Pods, namespace, metav1.ListOptions{LabelSelector: launcherLabel}); err != nil {
		return nil, "", unreadable("the pods of "+vmi, err)
	}
	all := r.Launchers(r.Instances[0].UID)
	switch len(all) {
	case 0:
		why := ""
		if refusal := r.Instances[0].Refusal; refusal != "" {
			why = " (" + refusal + ")"
		}
		return nil, "", fmt.Errorf("%s has no pod that has not ended%s: kubectl describe vmi -n %s %s and kubectl meshvirt check -n %s have more", vmi, why, namespace, t.name, namespace)
	case 1:
		return all[0], "the pod of " + vmi, nil
	}
	var others []string
	for _, pod := range all[1:] {
		others = append(others, pod.Name)
	}
	return all[0], fmt.Sprintf("the newest pod of %s, as the target of a migration is; not %s", vmi, strings.Join(others, ", ")), nil
}

// notRunning says of what was asked for that there is no VMI, or no VirtualMachine either.
func (r reader) notRunning(ctx context.Context, namespace string, t target) error {
	vm := target{inventory.Machines, t.name}.in(namespace)
	switch err := r.fetch(ctx, inventory.Machines, namespace, t.name); {
	case err == nil:
		return fmt.Errorf("%s does not run, and so has no pod: start it (virtctl start -n %s %s); until then kubectl meshvirt check -n %s judges its template", vm, namespace, t.name, namespace)
	case t.resource == inventory.Machines && !apierrors.IsNotFound(err):
		return unreadable(vm, err)
	}
	return fmt.Errorf("there is no %s: kubectl get vm,vmi -n %s lists what there is", t.in(namespace), namespace)
}

func unreadable(what string, err error) error {
	if apierrors.IsForbidden(err) {
		err = fmt.Errorf("%w: ask for the rights in docs/check.md, or give the pod by -f and its VirtualMachineInstance by --vmi", err)
	}
	return fmt.Errorf("read %s: %w", what, err)
}

// owner gives the VMI that controls the pod, or says why there is none, in the webhook's words.
func (r reader) owner(ctx context.Context, pod *corev1.Pod) (*kubevirt.VMI, string) {
	owner := inventory.OwnerOf(pod)
	if owner == nil {
		return nil, ""
	}
	if len(r.Instances) == 0 {
		switch err := r.fetch(ctx, inventory.Instances, pod.Namespace, owner.Name); {
		case notServed(err):
			return nil, kubevirt.ErrNotServed.Error()
		case apierrors.IsNotFound(err):
			return nil, kubevirt.NotFound(pod.Namespace, owner.Name).Error()
		case err != nil:
			return nil, err.Error()
		}
	}
	vmi := r.Instances[0]
	if vmi.UID != owner.UID {
		return nil, kubevirt.OtherUID(pod.Namespace, owner.Name, string(vmi.UID), string(owner.UID)).Error()
	}
	return vmi.VMI, vmi.Unreadable
}

// unknowns says what else was not read, and what is taken in its place.
func (r reader) unknowns(namespace string) (all []string) {
	if reason := r.Unknown[inventory.Namespaces]; reason != "" {
		all = append(all, fmt.Sprintf("whether namespace %s opts out, and which Pod Security level it enforces: %s", namespace, reason))
	}
	if r.Server == nil {
		all = append(all, "the API server's version, taken for one with native sidecars")
	}
	if r.Webhook() != nil {
		return all
	}
	reason := "no MutatingWebhookConfiguration has the webhook " + inventory.WebhookName + ": MeshVirt is not installed"
	if len(r.Ours()) > 0 {
		reason = "the Deployment behind MeshVirt's configuration is not found"
	}
	on := []string{inventory.Configurations, inventory.Services, inventory.Deployments}
	if i := slices.IndexFunc(on, func(resource string) bool { return r.Unknown[resource] != "" }); i >= 0 {
		reason = r.Unknown[on[i]]
	}
	return append(all, fmt.Sprintf("the webhook's default mode and image, taken for auto and %s: %s", check.Config(r.Cluster).Image.Name, reason))
}

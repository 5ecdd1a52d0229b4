package record

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshvirt/meshvirt/pkg/annotations"
	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/redirect"
	"github.com/meshvirt/meshvirt/pkg/templates"
)

// Changes say what Undo did.
type Changes struct {
	// Made has a line for each change. It is empty if the pod was never ours.
	Made []string
	// Warnings say where the result may differ from what the pod was.
	Warnings []string
}

func (c *Changes) made(format string, args ...any) {
	c.Made = append(c.Made, fmt.Sprintf(format, args...))
}

func (c *Changes) warn(format string, args ...any) {
	c.Warnings = append(c.Warnings, fmt.Sprintf(format, args...))
}

// Undo is the inverse of adaptation: it gives the pod as it was before us. Our containers and annotations
// go, and what the record in meshvirt.io/undo tells comes back. The pod that goes in is not touched; one that was never
// ours comes out. A record that cannot be read is an error that names the annotation and the value wanted.
//
// Without a record (the pod was adapted by hand, or somebody removed it) the mesh's settings are put
// back as KubeVirt and Istio of today would write them, which a warning says.
func Undo(pod *corev1.Pod) (*corev1.Pod, Changes, error) {
	var c Changes
	if !adapted(pod) {
		return pod, c, nil
	}
	r, ferr := readRecord(pod)
	if ferr != nil {
		return nil, c, ferr
	}
	out := new(*pod)
	out.Annotations, out.Spec.InitContainers = maps.Clone(pod.Annotations), slices.Clone(pod.Spec.InitContainers)
	if r != nil {
		r.restore(out, &c)
	} else {
		reroute(out, &c)
	}
	out.Spec.InitContainers = slices.DeleteFunc(out.Spec.InitContainers, func(have corev1.Container) bool {
		if templates.Ours(have.Name) {
			c.made("init container %s: removed", have.Name)
		}
		return templates.Ours(have.Name)
	})
	if slices.ContainsFunc(out.Spec.Volumes, templates.IsNoToken) {
		out.Spec.Volumes = slices.DeleteFunc(slices.Clone(out.Spec.Volumes), templates.IsNoToken)
		c.made("volume %s: removed", templates.NoTokenName)
	}
	for _, k := range annotations.Own {
		restoreAnnotation(out, &c, k, nil)
	}
	return out, c, nil
}

func (r *record) restore(pod *corev1.Pod, c *Changes) {
	for _, k := range slices.Sorted(maps.Keys(r.Annotations)) {
		restoreAnnotation(pod, c, k, r.Annotations[k])
	}
	for _, name := range slices.Sorted(maps.Keys(r.InitContainers)) {
		was, now := r.InitContainers[name], &pod.Spec.InitContainers[templates.Index(pod.Spec.InitContainers, name)]
		restoreList(c, name, "command", &now.Command, was.Command)
		restoreList(c, name, "args", &now.Args, was.Args)
	}
}

func restoreAnnotation(pod *corev1.Pod, c *Changes, key string, was *string) {
	now, ok := pod.Annotations[key]
	switch {
	case was == nil && ok:
		delete(pod.Annotations, key)
		c.made("annotation %s: removed", key)
	case was != nil && (!ok || now != *was):
		metav1.SetMetaDataAnnotation(&pod.ObjectMeta, key, *was)
		c.made("annotation %s: %s", key, *was)
	}
}

func restoreList(c *Changes, name, what string, now *[]string, was []string) {
	if was == nil || slices.Equal(*now, was) {
		return
	}
	if *now = was; len(was) == 0 {
		*now = nil // it was not there
	}
	c.made("init container %s: %s %s", name, what, strings.Join(was, " "))
}

// reroute gives the guest's interface back to the mesh where there is no record of how it was.
func reroute(pod *corev1.Pod, c *Changes) {
	mode, interfaces := adaptation(pod)
	i := redirect.Container(pod)
	switch {
	case mode == plan.Native || mode == plan.Process: // they give the mesh's own redirection its way, and lose nothing that works
		c.warn("annotation %s is missing: the mesh's settings stay as mode %s has them, and may differ from what they were", annotations.Undo, mode)
		return
	case len(interfaces) == 0 || i < 0:
		c.warn("annotation %s is missing, and so is the guest's interface in %s or the plan of %s: the mesh's settings stay as they are",
			annotations.Undo, annotations.Status, templates.RulesName)
		return
	}
	changes, err := redirect.Reroute(pod, interfaces)
	if err != nil {
		c.warn("annotation %s is missing, and the arguments of %s cannot be read: %v; the mesh's settings stay as they are", annotations.Undo, pod.Spec.InitContainers[i].Name, err)
		return
	}
	c.Made = append(c.Made, changes...)
	c.warn("annotation %s is missing: interface %s goes back to the mesh as KubeVirt 1.7 asks for it, which may differ from what was there",
		annotations.Undo, strings.Join(interfaces, ","))
}

// adaptation reads the mode and the guest's interfaces of an adapted pod: from its status, else from
// the plan that our container was given.
func adaptation(pod *corev1.Pod) (plan.Mode, []string) {
	if s := StatusOf(pod); s.Mode != "" {
		return s.Mode, s.Interfaces
	}
	if p, ok := PlanOf(pod); ok {
		return p.Mode, p.Interfaces
	}
	return "", nil
}

package record

import (
	"encoding/json"
	"errors"
	"io"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/meshvirt/meshvirt/pkg/annotations"
	"github.com/meshvirt/meshvirt/pkg/templates"
)

// record is the value of meshvirt.io/undo: what adaptation changed, as it was before. Only what was
// there already is in it; what is ours by name (containers, annotations) goes without being told.
type record struct {
	// Annotations are the old values; null for a key that was not there.
	Annotations map[string]*string `json:"annotations,omitempty"`
	// InitContainers are those whose command or arguments changed.
	InitContainers map[string]commandLine `json:"initContainers,omitempty"`
}

// commandLine holds the lists that changed: nil for one that did not, empty for one that was not there.
type commandLine struct {
	Command []string `json:"command,omitzero"`
	Args    []string `json:"args,omitzero"`
}

const wantRecord = `want what MeshVirt wrote there, such as {"annotations":{"key":"old value, or null for none"},"initContainers":{"istio-init":{"args":["old"]}}}`

// readRecord gives nil if the pod has no record.
func readRecord(pod *corev1.Pod) (*record, *field.Error) {
	v, ok := pod.Annotations[annotations.Undo]
	if !ok {
		return nil, nil
	}
	bad := func(why string) (*record, *field.Error) {
		return nil, field.Invalid(annotations.Path.Key(annotations.Undo), v, why+": "+wantRecord)
	}
	d := json.NewDecoder(strings.NewReader(v))
	d.DisallowUnknownFields()
	var r *record
	if err := d.Decode(&r); err != nil {
		return bad(strings.TrimPrefix(err.Error(), "json: "))
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return bad("data after the record")
	}
	if r == nil {
		return bad("null")
	}
	for _, k := range slices.Sorted(maps.Keys(r.Annotations)) {
		if slices.Contains(annotations.Own, k) {
			return bad("annotation " + k + " is MeshVirt's own")
		}
	}
	for _, name := range slices.Sorted(maps.Keys(r.InitContainers)) {
		if templates.Ours(name) {
			return bad("init container " + name + " is MeshVirt's own")
		}
		if templates.Index(pod.Spec.InitContainers, name) < 0 {
			return bad("the pod has no init container " + name)
		}
	}
	return r, nil
}

// Write puts into a pod that was adapted the record of how it was before. The record of an earlier adaptation
// of the same pod goes on; if that left none, the pod's first state is not known and none is begun. Write reports
// whether the record changed. An error says that an earlier record cannot be read; it stays as it is.
func Write(before, after *corev1.Pod) (bool, error) {
	r := &record{}
	if adapted(before) { // else a record came with a copied manifest and says nothing about this pod
		was, err := readRecord(before)
		if err != nil {
			return false, err
		}
		r = was
	}
	return r != nil && r.put(before, after), nil
}

// Remember adds to the record of an adapted pod how before looked where the two differ, so that Undo
// gives before back. What is recorded already stays. Whoever adapts a pod records by Write what that changed; this
// is for callers that change annotations around it. A pod without a record, or with one that cannot be
// read, stays as it is, and one whose annotations have no room for the whole record loses it: Undo will
// say so.
func Remember(before, after *corev1.Pod) {
	if r, err := readRecord(after); err == nil && r != nil {
		r.put(before, after)
		if Excess(after) > 0 {
			delete(after.Annotations, annotations.Undo)
		}
	}
}

// MaxAnnotations is what an API server takes of an object's annotations, keys and values together, in bytes.
const MaxAnnotations = validation.TotalAnnotationSizeLimitB

// Excess gives the bytes that the pod's annotations have more than the API server takes; negative, what
// there is room for.
func Excess(pod *corev1.Pod) int {
	n := -MaxAnnotations
	for k, v := range pod.Annotations {
		n += len(k) + len(v)
	}
	return n
}

// put adds what differs and puts r into after's annotation. It reports whether that changed.
func (r *record) put(before, after *corev1.Pod) bool {
	r.add(before, after)
	v := r.String()
	if was, ok := after.Annotations[annotations.Undo]; ok && was == v {
		return false
	}
	metav1.SetMetaDataAnnotation(&after.ObjectMeta, annotations.Undo, v)
	return true
}

// add records every difference that is not in r yet.
func (r *record) add(before, after *corev1.Pod) {
	note := func(key string, was *string) {
		if _, ok := r.Annotations[key]; ok || slices.Contains(annotations.Own, key) {
			return
		}
		if r.Annotations == nil {
			r.Annotations = map[string]*string{}
		}
		r.Annotations[key] = was
	}
	for k, v := range before.Annotations {
		if now, ok := after.Annotations[k]; !ok || now != v {
			note(k, &v)
		}
	}
	for k := range after.Annotations {
		if _, ok := before.Annotations[k]; !ok {
			note(k, nil)
		}
	}
	earlier := make(map[string]*corev1.Container, len(before.Spec.InitContainers))
	for i := range before.Spec.InitContainers {
		earlier[before.Spec.InitContainers[i].Name] = &before.Spec.InitContainers[i]
	}
	for i := range after.Spec.InitContainers {
		now := &after.Spec.InitContainers[i]
		was, ok := earlier[now.Name]
		if !ok || templates.Ours(now.Name) {
			continue
		}
		c := r.InitContainers[now.Name]
		if c.Command == nil && !slices.Equal(was.Command, now.Command) {
			c.Command = append([]string{}, was.Command...)
		}
		if c.Args == nil && !slices.Equal(was.Args, now.Args) {
			c.Args = append([]string{}, was.Args...)
		}
		if c.Command == nil && c.Args == nil {
			continue
		}
		if r.InitContainers == nil {
			r.InitContainers = map[string]commandLine{}
		}
		r.InitContainers[now.Name] = c
	}
}

// String is r in JSON, with <, > and & as they are: people read it.
func (r *record) String() string {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(r); err != nil { // strings only: cannot happen
		panic(err)
	}
	return strings.TrimSpace(b.String())
}

// Package patch makes the JSON patch between two pods, for the changes that adaptation makes.
package patch

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"gomodules.xyz/jsonpatch/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"

	"github.com/meshvirt/meshvirt/pkg/templates"
)

// Between gives the JSON patch (RFC 6902) that makes before into after, for the changes that adapt a pod or
// give it back: annotations, command and arguments of init containers, our own containers and volume put in,
// replaced or taken out. It is minimal and addresses only what changed, so fields that this program's Kubernetes library does not
// know stay byte for byte as they are. A diff of the marshalled pods would cost more than the whole
// admission, and would drop or misplace such fields: lists are compared by index there.
func Between(before, after *corev1.Pod) []jsonpatch.Operation {
	ops := append(annotations(before.Annotations, after.Annotations), volumes(before.Spec.Volumes, after.Spec.Volumes)...)
	if len(before.Spec.InitContainers) == 0 && len(after.Spec.InitContainers) > 0 {
		return append(ops, jsonpatch.NewOperation("add", "/spec/initContainers", after.Spec.InitContainers))
	}
	if len(before.Spec.InitContainers) > 0 && len(after.Spec.InitContainers) == 0 {
		return append(ops, jsonpatch.NewOperation("remove", "/spec/initContainers", nil))
	}
	rest := before.Spec.InitContainers
	remove := func(path string) {
		for len(rest) > 0 && templates.Ours(rest[0].Name) && templates.Index(after.Spec.InitContainers, rest[0].Name) < 0 {
			ops = append(ops, jsonpatch.NewOperation("remove", path, nil))
			rest = rest[1:]
		}
	}
	for i, c := range after.Spec.InitContainers {
		path := fmt.Sprintf("/spec/initContainers/%d", i)
		remove(path)
		if len(rest) == 0 || rest[0].Name != c.Name {
			ops = append(ops, jsonpatch.NewOperation("add", path, c))
			continue
		}
		was := rest[0]
		rest = rest[1:]
		if templates.Ours(c.Name) {
			if !equality.Semantic.DeepEqual(was, c) {
				ops = append(ops, jsonpatch.NewOperation("replace", path, c))
			}
			continue
		}
		ops = append(ops, list(path+"/command", was.Command, c.Command)...)
		ops = append(ops, list(path+"/args", was.Args, c.Args)...)
	}
	remove(fmt.Sprintf("/spec/initContainers/%d", len(after.Spec.InitContainers)))
	return ops
}

func volumes(before, after []corev1.Volume) []jsonpatch.Operation {
	was, is := slices.IndexFunc(before, templates.IsNoToken), slices.IndexFunc(after, templates.IsNoToken)
	switch {
	case was < 0 && is >= 0 && len(before) == 0:
		return []jsonpatch.Operation{jsonpatch.NewOperation("add", "/spec/volumes", after)}
	case was < 0 && is >= 0:
		return []jsonpatch.Operation{jsonpatch.NewOperation("add", "/spec/volumes/-", after[is])}
	case was >= 0 && is < 0 && len(before) == 1:
		return []jsonpatch.Operation{jsonpatch.NewOperation("remove", "/spec/volumes", nil)}
	case was >= 0 && is < 0:
		return []jsonpatch.Operation{jsonpatch.NewOperation("remove", fmt.Sprintf("/spec/volumes/%d", was), nil)}
	}
	return nil
}

func list(path string, before, after []string) []jsonpatch.Operation {
	switch {
	case slices.Equal(before, after):
		return nil
	case before == nil:
		return []jsonpatch.Operation{jsonpatch.NewOperation("add", path, after)}
	case len(after) == 0:
		return []jsonpatch.Operation{jsonpatch.NewOperation("remove", path, nil)}
	}
	return []jsonpatch.Operation{jsonpatch.NewOperation("replace", path, after)}
}

func annotations(before, after map[string]string) []jsonpatch.Operation {
	if len(before) == 0 {
		if len(after) == 0 {
			return nil
		}
		return []jsonpatch.Operation{jsonpatch.NewOperation("add", "/metadata/annotations", after)}
	}
	if len(after) == 0 {
		return []jsonpatch.Operation{jsonpatch.NewOperation("remove", "/metadata/annotations", nil)}
	}
	var removed, set []string
	for k := range before {
		if _, ok := after[k]; !ok {
			removed = append(removed, k)
		}
	}
	for k, v := range after {
		if was, ok := before[k]; !ok || was != v {
			set = append(set, k)
		}
	}
	slices.Sort(removed)
	slices.Sort(set)
	var ops []jsonpatch.Operation
	for _, k := range removed {
		ops = append(ops, jsonpatch.NewOperation("remove", annotationPointer(k), nil))
	}
	for _, k := range set {
		op := "add"
		if _, ok := before[k]; ok {
			op = "replace"
		}
		ops = append(ops, jsonpatch.NewOperation(op, annotationPointer(k), after[k]))
	}
	return ops
}

// Encode gives the operations as the patch's JSON.
func Encode(ops []jsonpatch.Operation) ([]byte, error) {
	all := make([]operation, len(ops))
	for i, op := range ops {
		all[i] = operation(op)
	}
	return json.Marshal(all)
}

// operation is jsonpatch.Operation without its MarshalJSON, which encodes each value twice.
type operation jsonpatch.Operation

// pointerEscaper escapes a reference token of a JSON pointer (RFC 6901 section 3).
var pointerEscaper = strings.NewReplacer("~", "~0", "/", "~1")

func annotationPointer(key string) string {
	return "/metadata/annotations/" + pointerEscaper.Replace(key)
}

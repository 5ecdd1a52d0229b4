package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"

	jsonpatch "github.com/evanphx/json-patch/v5"
	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"

	"github.com/meshvirt/meshvirt/pkg/patch"
)

// transform prints all manifests of a file with f's changes to each pod. With an error in any of
// them it prints nothing.
func transform(c *cobra.Command, file string, output form, f func(*corev1.Pod) (*corev1.Pod, error)) error {
	in, err := read(file, c.InOrStdin())
	if err != nil {
		return err
	}
	docs, err := split(in)
	if err != nil {
		return err
	}
	var out bytes.Buffer
	var errs []error
	for n, doc := range docs {
		err := doc.eachPod(func(raw []byte, pod *corev1.Pod) ([]byte, error) {
			after, err := f(pod)
			if err != nil {
				return nil, err
			}
			return patched(raw, pod, after)
		})
		if err == nil {
			err = doc.write(&out, output, n > 0)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("document %d: %w", n+1, err))
		}
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	_, err = c.OutOrStdout().Write(out.Bytes())
	return err
}

// patched makes in a manifest the change that was made from before to after. Fields of the manifest
// that this program's Kubernetes library does not know stay.
func patched(raw []byte, before, after *corev1.Pod) ([]byte, error) {
	ops := patch.Between(before, after)
	if len(ops) == 0 {
		return raw, nil
	}
	encoded, err := patch.Encode(ops)
	if err != nil {
		return nil, err
	}
	p, err := jsonpatch.DecodePatch(encoded)
	if err != nil {
		return nil, err
	}
	return p.Apply(raw)
}

// eachPod replaces the document's pod, or each pod of its list, by what f makes of it. Everything
// else stays as it is.
func (d *document) eachPod(f func(raw []byte, pod *corev1.Pod) ([]byte, error)) (err error) {
	d.JSON, err = eachPod(d.JSON, f)
	return err
}

func eachPod(doc []byte, f func(raw []byte, pod *corev1.Pod) ([]byte, error)) ([]byte, error) {
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
		var pod corev1.Pod
		if err := json.Unmarshal(doc, &pod); err != nil {
			return nil, fmt.Errorf("read pod: %w", err)
		}
		out, err := f(doc, &pod)
		if err != nil {
			return nil, fmt.Errorf("pod %s: %w", podName(&pod), err)
		}
		return out, nil
	case "List", "PodList":
		return eachItem(doc, meta.Items, f)
	}
	return doc, nil
}

func eachItem(doc []byte, all []json.RawMessage, f func([]byte, *corev1.Pod) ([]byte, error)) ([]byte, error) {
	var errs []error
	for n, item := range all {
		out, err := eachPod(item, f)
		if err != nil {
			errs = append(errs, fmt.Errorf("items[%d]: %w", n, err))
			continue
		}
		all[n] = out
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	items, err := json.Marshal(all)
	if err != nil {
		return nil, err
	}
	return jsonpatch.MergePatch(doc, fmt.Appendf(nil, `{"items":%s}`, items))
}

// podName is the pod's name, or its beginning if the API server has yet to make it up.
func podName(pod *corev1.Pod) string {
	if pod.Name == "" {
		return pod.GenerateName
	}
	return pod.Name
}

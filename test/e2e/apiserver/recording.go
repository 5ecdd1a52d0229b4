package apiserver

import (
	"embed"
	"encoding/json"
	"fmt"
	"path"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"sigs.k8s.io/yaml"
)

//go:embed testdata
var testdata embed.FS

// Recording is what Istio's injector made of one virt-launcher pod.
type Recording struct {
	// Pod is as KubeVirt's controller sends it to the API server, Injected as Istio's webhook of some
	// version answered, both without the defaults that the API server sets.
	Pod, Injected *corev1.Pod

	// patch is the difference, by names of containers, volumes and keys rather than by index, so that
	// it also fits a pod that the API server and other webhooks have added to.
	patch []byte
}

// Load reads a recording: the KubeVirt release and case of the pod, such as "v1.9.0" and
// "masquerade-istio-ports", and Istio's release with the way it was set up, such as "1.31.0-rc.0-native".
func Load(kubevirt, vm, istio string) (*Recording, error) {
	dir := path.Join("testdata", "pods", kubevirt, vm)
	pod, err := loadPod(path.Join(dir, "pod.yaml"))
	if err != nil {
		return nil, err
	}
	injected, err := loadPod(path.Join(dir, "injected-"+istio+".yaml"))
	if err != nil {
		return nil, err
	}
	return newRecording(pod, injected)
}

func newRecording(pod, injected *corev1.Pod) (*Recording, error) {
	from, err := json.Marshal(pod)
	if err != nil {
		return nil, err
	}
	to, err := json.Marshal(injected)
	if err != nil {
		return nil, err
	}
	patch, err := strategicpatch.CreateTwoWayMergePatch(from, to, corev1.Pod{})
	if err != nil {
		return nil, fmt.Errorf("compare a pod with what Istio made of it: %w", err)
	}
	return &Recording{pod, injected, patch}, nil
}

// Edited is a recording that injects something else: what edit leaves of a copy of r.Injected.
func (r *Recording) Edited(edit func(injected *corev1.Pod)) (*Recording, error) {
	injected := r.Injected.DeepCopy()
	edit(injected)
	return newRecording(r.Pod, injected)
}

func loadPod(file string) (*corev1.Pod, error) {
	b, err := testdata.ReadFile(file)
	if err != nil {
		return nil, err
	}
	pod := &corev1.Pod{}
	if err := yaml.UnmarshalStrict(b, pod); err != nil {
		return nil, fmt.Errorf("read %s: %w", file, err)
	}
	return pod, nil
}

// Inject makes of pod, which is one like r.Pod, what Istio made of r.Pod: containers and volumes of
// pod keep what they came with, Istio's are added as recorded, in the recorded order.
func (r *Recording) Inject(pod *corev1.Pod) (*corev1.Pod, error) {
	from, err := json.Marshal(pod)
	if err != nil {
		return nil, err
	}
	to, err := strategicpatch.StrategicMergePatch(from, r.patch, corev1.Pod{})
	if err != nil {
		return nil, fmt.Errorf("inject as recorded: %w", err)
	}
	injected := &corev1.Pod{}
	if err := json.Unmarshal(to, injected); err != nil {
		return nil, fmt.Errorf("inject as recorded: %w", err)
	}
	return injected, nil
}

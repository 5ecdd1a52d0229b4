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
	r := &Recording{}
	var err error
	if r.Pod, err = loadPod(path.Join(dir, "pod.yaml")); err != nil {
		return nil, err
	}
	if r.Injected, err = loadPod(path.Join(dir, "injected-"+istio+".yaml")); err != nil {
		return nil, err
	}
	from, err := json.Marshal(r.Pod)
	if err != nil {
		return nil, err
	}
	to, err := json.Marshal(r.Injected)
	if err != nil {
		return nil, err
	}
	if r.patch, err = strategicpatch.CreateTwoWayMergePatch(from, to, corev1.Pod{}); err != nil {
		return nil, fmt.Errorf("compare %s with what Istio %s made of it: %w", dir, istio, err)
	}
	return r, nil
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

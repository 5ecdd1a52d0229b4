package apiserver

import (
	"io/fs"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// quantities are equal if they are the same amount, however written.
var quantities = cmp.Comparer(func(a, b resource.Quantity) bool { return a.Cmp(b) == 0 })

// recordings calls f with every recording that there is, or that is wanted.
func recordings(t *testing.T, wanted func(*Recording) bool, f func(t *testing.T, r *Recording)) {
	files, err := fs.Glob(testdata, "testdata/pods/*/*/injected-*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, file := range files {
		dir, name := path.Split(file)
		vm := path.Base(dir)
		kubevirt := path.Base(path.Dir(path.Clean(dir)))
		istio := strings.TrimSuffix(strings.TrimPrefix(name, "injected-"), ".yaml")
		r, err := Load(kubevirt, vm, istio)
		if err != nil {
			t.Fatal(err)
		}
		if wanted != nil && !wanted(r) {
			continue
		}
		found++
		t.Run(path.Join(kubevirt, vm, istio), func(t *testing.T) { f(t, r) })
	}
	if found == 0 {
		t.Fatal("no recordings")
	}
}

// recordings calls f with every recording of what Istio injects in a cluster of this release.
func (s *site) recordings(t *testing.T, f func(t *testing.T, r *Recording)) {
	recordings(t, s.supports, f)
}

// supports reports whether Istio would inject that in a cluster of this release: native sidecars are off
// by default before Kubernetes 1.29.
func (s *site) supports(r *Recording) bool {
	return s != oldest || !slices.ContainsFunc(r.Injected.Spec.InitContainers, func(c corev1.Container) bool { return c.RestartPolicy != nil })
}

func TestRecordedPodGivesRecordedAnswer(t *testing.T) {
	recordings(t, nil, func(t *testing.T, r *Recording) {
		got, err := r.Inject(r.Pod)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(r.Injected, got, quantities); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
		if cmp.Equal(r.Pod, r.Injected, quantities) {
			t.Error("the recording injects nothing")
		}
	})
}

// What the pod has more than the recorded one stays, whatever list it is in.
func TestInjectKeepsWhatElseThePodHas(t *testing.T) {
	r, err := Load("v1.9.0", "masquerade-istio-ports", "1.31.0-rc.0-dns-dualstack")
	if err != nil {
		t.Fatal(err)
	}
	add := func(pod *corev1.Pod) {
		compute := &pod.Spec.Containers[0]
		compute.Ports = append(compute.Ports, corev1.ContainerPort{Name: "game", ContainerPort: 9999, Protocol: corev1.ProtocolUDP})
		compute.TerminationMessagePath = "/dev/termination-log"
		compute.VolumeMounts = append(compute.VolumeMounts, corev1.VolumeMount{Name: "token", MountPath: "/token"})
		pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: "token"})
		pod.Spec.Tolerations = append(pod.Spec.Tolerations, corev1.Toleration{Key: "node", Operator: corev1.TolerationOpExists})
		metav1.SetMetaDataAnnotation(&pod.ObjectMeta, "meshvirt.io/mode", "rules")
		metav1.SetMetaDataLabel(&pod.ObjectMeta, "team", "games")
	}
	pod, want := r.Pod.DeepCopy(), r.Injected.DeepCopy()
	add(pod)
	add(want)
	got, err := r.Inject(pod)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, quantities); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

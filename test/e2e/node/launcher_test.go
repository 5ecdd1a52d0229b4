package node

import (
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/meshvirt/meshvirt/pkg/annotations"
	"github.com/meshvirt/meshvirt/test/e2e/apiserver"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/agent"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/sidecar"
	"github.com/meshvirt/meshvirt/tools"
)

const (
	// vms is the namespace of the virtual machines.
	vms = "vms"
	// recorded is the virtual machine of the corpus that they are.
	recorded = "masquerade-istio-ports"
)

// kubeVirt makes what virtual machines need: KubeVirt's API and a namespace that Istio injects.
func kubeVirt(t *testing.T, c *Cluster) {
	t.Helper()
	for _, crd := range []*unstructured.Unstructured{apiserver.CRD("VirtualMachineInstance", "vmi"), apiserver.CRD("VirtualMachine", "vm")} {
		if err := c.Client.Create(t.Context(), crd); client.IgnoreAlreadyExists(err) != nil {
			t.Fatal(err)
		}
	}
	do(t, c.Namespace(t.Context(), vms, apiserver.Injecting))
	root := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: vms, Name: "istio-ca-root-cert"}, Data: map[string]string{"root-cert.pem": "nobody reads it"}}
	if err := c.Client.Create(t.Context(), root); client.IgnoreAlreadyExists(err) != nil {
		t.Fatal(err)
	}
	recording, err := apiserver.Load("v1.9.0", recorded, "1.31.0-rc.0-native")
	do(t, err)
	injector.Use(vms, recording)
}

// launcher makes a VMI with more annotations, and gives the virt-launcher pod that virt-controller would create for it,
// which copies them. Unlike the recorded one it has no volumes from images, which containerd 1.6 does not
// know, and so not the container that waits in one.
func launcher(t *testing.T, c *Cluster, name string, more map[string]string) *corev1.Pod {
	t.Helper()
	ctx := t.Context()
	root, err := tools.Root()
	do(t, err)
	text, err := os.ReadFile(filepath.Join(root, "test/corpus/pods/v1.9.0", recorded, "vmi.yaml"))
	do(t, err)
	vmi := &unstructured.Unstructured{}
	do(t, yaml.Unmarshal(text, &vmi.Object))
	vmi.SetNamespace(vms)
	vmi.SetName(name)
	vmi.SetUID("")
	vmi.SetFinalizers(nil)
	annotations := vmi.GetAnnotations()
	maps.Copy(annotations, more)
	vmi.SetAnnotations(annotations)
	await1(t, "VMI "+name+" is made", func() bool { // the API server may not serve them at once
		err := c.Client.Create(ctx, vmi)
		return client.IgnoreAlreadyExists(err) == nil
	})
	recording, err := apiserver.Load("v1.9.0", recorded, "1.31.0-rc.0-native")
	do(t, err)
	pod := recording.Pod.DeepCopy()
	pod.GenerateName = "virt-launcher-" + name + "-"
	pod.OwnerReferences[0].Name, pod.OwnerReferences[0].UID = name, vmi.GetUID()
	maps.Copy(pod.Annotations, more)
	images := map[string]bool{}
	pod.Spec.Volumes = slices.DeleteFunc(pod.Spec.Volumes, func(v corev1.Volume) bool {
		images[v.Name] = v.Image != nil
		return v.Image != nil
	})
	fromImage := func(m corev1.VolumeMount) bool { return images[m.Name] }
	pod.Spec.InitContainers = slices.DeleteFunc(pod.Spec.InitContainers, func(c corev1.Container) bool { return slices.ContainsFunc(c.VolumeMounts, fromImage) })
	for i := range pod.Spec.Containers {
		mounts := &pod.Spec.Containers[i].VolumeMounts
		*mounts = slices.DeleteFunc(*mounts, fromImage)
	}
	pod.Spec.TerminationGracePeriodSeconds = new(int64(2))
	return pod
}

// launch creates the pod of launcher.
func launch(t *testing.T, c *Cluster, name string, more map[string]string) *corev1.Pod {
	t.Helper()
	pod, err := c.Admit(t.Context(), vms, launcher(t, c, name, more))
	do(t, err)
	return pod
}

// running waits until all containers of the pod are ready. (It is not Ready itself: for that KubeVirt
// would have to say that the virtual machine is not paused.)
func running(t *testing.T, c *Cluster, pod *corev1.Pod) *corev1.Pod {
	t.Helper()
	now := &corev1.Pod{}
	for deadline := time.Now().Add(patience); ; time.Sleep(poll) {
		do(t, c.Client.Get(t.Context(), client.ObjectKeyFromObject(pod), now))
		for _, condition := range now.Status.Conditions {
			if condition.Type == corev1.ContainersReady && condition.Status == corev1.ConditionTrue {
				return now
			}
		}
		if now.Status.Phase == corev1.PodFailed || time.Now().After(deadline) {
			told, err := c.Kubectl(t.Context(), "describe", "pod", "-n", pod.Namespace, pod.Name)
			t.Fatalf("the pod is not ready (%v)\n%s", err, told)
		}
	}
}

// ours gives the containers in the pod that MeshVirt injects.
func ours(pod *corev1.Pod) map[string]corev1.Container {
	all := map[string]corev1.Container{}
	for _, c := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
		if strings.HasPrefix(c.Name, "meshvirt-") {
			all[c.Name] = c
		}
	}
	return all
}

// adapted reports whether MeshVirt did what it does to the pod.
func adapted(pod *corev1.Pod) bool {
	return pod.Annotations[annotations.Status] != "" && len(ours(pod)) > 0
}

// peerPod starts a pod to talk to.
func peerPod(t *testing.T, c *Cluster, name string) (*corev1.Pod, *agent.Client) {
	t.Helper()
	pod, err := c.Admit(t.Context(), "default", &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PodSpec{
			TerminationGracePeriodSeconds: new(int64(1)),
			Containers:                    []corev1.Container{{Name: "peer", Image: sandboxImage, ImagePullPolicy: corev1.PullNever}},
		},
	})
	do(t, err)
	pod = running(t, c, pod)
	peer, err := c.Agent(t.Context(), pod)
	do(t, err)
	t.Cleanup(func() { peer.Close() })
	any := netip.IPv4Unspecified()
	do(t, peer.Listen(t.Context(), agent.Listen{Network: "tcp", Addr: netip.AddrPortFrom(any, 8080), Kind: agent.Echo}))
	return pod, peer
}

func ip(pod *corev1.Pod) netip.Addr { return netip.MustParseAddr(pod.Status.PodIP) }

// paths are ways between a guest and another pod, each once through the sidecar.
var paths = []struct {
	name string
	in   bool
	port uint16
	kind string
	via  sidecar.Direction
}{
	{name: "tcp out", port: 8080, kind: agent.Echo, via: sidecar.Out},
	{name: "tcp in", in: true, port: 80, kind: agent.Echo, via: sidecar.In},
	{name: "ssh in", in: true, port: 22, kind: agent.Banner, via: sidecar.In},
}

// travel tries the paths and gives the names of those that were as they have to be.
func travel(t *testing.T, c *Cluster, pod *corev1.Pod, guest *agent.Client, peerPod *corev1.Pod, peer *agent.Client) (good []string) {
	t.Helper()
	for _, p := range paths {
		from, to, listener := guest, ip(peerPod), peer
		if p.in {
			from, to, listener = peer, ip(pod), guest
		}
		token := pod.Name + " " + p.name
		destination := netip.AddrPortFrom(to, p.port)
		d, err := from.Dial(t.Context(), agent.Dial{Network: "tcp", To: destination, Kind: p.kind, Token: token, Bytes: 1000, Timeout: 5 * time.Second})
		do(t, err)
		arrived, err := listener.Seen(t.Context(), token)
		do(t, err)
		var via []sidecar.Direction
		if d.OK {
			// The log is a moment behind.
			for deadline := time.Now().Add(2 * time.Second); len(via) == 0 && time.Now().Before(deadline); time.Sleep(poll) {
				via, err = c.took(t.Context(), pod, destination)
				do(t, err)
			}
		}
		t.Logf("%s %s: ok %t %s, %d arrived, via %v", pod.Name, p.name, d.OK, d.Err, len(arrived), via)
		if d.OK && len(arrived) == 1 && slices.Equal(via, []sidecar.Direction{p.via}) {
			good = append(good, p.name)
		}
	}
	return good
}

// do stops the test at an error.
func do(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// await1 waits until check is true.
func await1(t *testing.T, what string, check func() bool) {
	t.Helper()
	do(t, await(t.Context(), what, func() (bool, error) { return check(), nil }))
}

// kubectl runs it as an administrator and gives its output.
func kubectl(t *testing.T, c *Cluster, args ...string) string {
	t.Helper()
	out, err := c.Kubectl(t.Context(), args...)
	do(t, err)
	return out
}

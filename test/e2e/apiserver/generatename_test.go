package apiserver

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvirt/meshvirt/pkg/annotations"
	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/record"
)

// namesakes is how many pods of one generateName are created at the same time.
const namesakes = 20

// Pods have no name yet when they are reviewed, and virt-controller may create many of one generateName at once. Each
// gets what its own annotations ask for, and is given back as it was.
func TestGenerateName(t *testing.T) { each(t, testGenerateName) }

func testGenerateName(t *testing.T, s *site) {
	r := s.vmWeb(t)
	with, without := s.namespace(t, r), s.namespace(t, r, "meshvirt.io/inject=disabled")
	port := func(i int) uint16 { return 10000 + uint16(i) }
	of := func(i int) *corev1.Pod {
		pod := r.Pod.DeepCopy()
		pod.Annotations[annotations.ExcludeOutboundPorts] = strconv.Itoa(int(port(i)))
		return pod
	}
	pods := make([]*corev1.Pod, namesakes)
	together(t, func(i int) (err error) {
		pods[i], err = s.Admit(t.Context(), with, of(i))
		return err
	})
	seen := map[string]bool{}
	for i, pod := range pods {
		if !strings.HasPrefix(pod.Name, r.Pod.GenerateName) || seen[pod.Name] {
			t.Errorf("pod %d is called %s, want a name of its own that starts with %s", i, pod.Name, r.Pod.GenerateName)
		}
		seen[pod.Name] = true
		for j := range pods {
			if got := slices.Contains(planOf(t, pod).Outbound.ExcludePorts, port(j)); got != (i == j) {
				t.Errorf("pod %d excludes the port of pod %d: %t", i, j, got)
			}
		}
		if pod.Annotations[annotations.Status] == "" {
			t.Errorf("pod %d has no status", i)
		}
		plain, err := s.Admit(t.Context(), without, of(i), client.DryRunAll)
		if err != nil {
			t.Fatal(err)
		}
		undone, changes, err := record.Undo(pod)
		if err != nil || len(changes.Warnings) > 0 {
			t.Fatalf("undo pod %d: %v, warnings %q", i, err, changes.Warnings)
		}
		if diff := cmp.Diff(plain, undone, samePod); diff != "" {
			t.Errorf("pod %d undone (-never adapted +undone)\n%s", i, diff)
		}
	}
}

// The oldest API server tells the same facts and takes the same events, for pods of one generateName too.
func TestFactsOfTheOldest(t *testing.T) {
	f := startFacts(t, StartOldest, oldestCorpus)
	f.serveVMIs(t)
	f.awaitQuestions(t)
	f.testGenerateName(t)
	t.Run("native sidecars", f.testNativeSidecars)
}

// testNativeSidecars: this API server drops restartPolicy from init containers, and a pod with a relay would wait for
// its end.
func (f *factsCluster) testNativeSidecars(t *testing.T) {
	pod := f.vm(t, factsNamespace, custom, "relayed", true, nil)
	pod.Annotations[annotations.Mode] = string(plan.NATProxy)
	_, err := f.Admit(t.Context(), factsNamespace, pod)
	if err == nil || !strings.Contains(err.Error(), annotations.Mode) || !strings.Contains(err.Error(), "Kubernetes 1.29 or later") {
		t.Errorf("got %v, want an error that names %s and the release that it needs", err, annotations.Mode)
	}
	pod = f.vm(t, factsNamespace, custom, "not-relayed", true, nil)
	pod.Annotations[annotations.Mode] = string(plan.Rules)
	f.admit(t, factsNamespace, pod)
}

// testGenerateName is about many VMs whose pods have one generateName: each pod gets its own VM's guest, and each
// VMI one event, about itself.
func (f *factsCluster) testGenerateName(t *testing.T) {
	network := func(i int) string { return fmt.Sprintf("10.11.%d.", 100+i) }
	in := make([]*corev1.Pod, namesakes)
	for i := range in {
		in[i] = f.vm(t, factsNamespace, custom, fmt.Sprintf("namesake-%d", i), true, func(vmi *unstructured.Unstructured) {
			networks, _, err := unstructured.NestedSlice(vmi.Object, "spec", "networks")
			if err != nil || len(networks) != 1 {
				t.Fatalf("%d networks (%v), want 1", len(networks), err)
			}
			networks[0].(map[string]any)["pod"].(map[string]any)["vmNetworkCIDR"] = network(i) + "0/24"
			if err := unstructured.SetNestedSlice(vmi.Object, networks, "spec", "networks"); err != nil {
				t.Fatal(err)
			}
		})
		in[i].GenerateName = "virt-launcher-namesake-"
	}
	pods := make([]*corev1.Pod, namesakes)
	together(t, func(i int) (err error) {
		pods[i], err = f.Admit(t.Context(), factsNamespace, in[i])
		return err
	})
	for i, pod := range pods {
		if guest, want := planOf(t, pod).Guest.IPv4.String(), network(i)+"2"; guest != want {
			t.Errorf("pod %d is for guest %s, want %s", i, guest, want)
		}
		f.awaitEvents(t, pod, factsNamespace)
	}
	// Events are written in order: when one of a later pod is there, no more are to come.
	last := f.vm(t, factsNamespace, custom, "namesakes-end", true, nil)
	f.admit(t, factsNamespace, last)
	f.awaitEvents(t, last, factsNamespace)
	for i, pod := range pods {
		events := f.events(t, pod, factsNamespace)
		if len(events) != 1 || len(events["MeshJoined"]) != 1 || events["MeshJoined"][0].Count != 1 {
			t.Errorf("events %+v about VM %d, want one MeshJoined", events, i)
		}
	}
}

// together calls f for each of the namesakes at the same time.
func together(t *testing.T, f func(i int) error) {
	t.Helper()
	var all sync.WaitGroup
	for i := range namesakes {
		all.Go(func() {
			if err := f(i); err != nil {
				t.Errorf("pod %d: %v", i, err)
			}
		})
	}
	all.Wait()
	if t.Failed() {
		t.FailNow()
	}
}

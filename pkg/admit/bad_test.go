package admit

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	jsonpatch "github.com/evanphx/json-patch/v5"
	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"github.com/meshvirt/meshvirt/pkg/templates"
	"github.com/meshvirt/meshvirt/test/corpus"
)

// What the configuration does not ask about is let through unread, whatever it is.
func TestOtherReviewsAreNotRead(t *testing.T) {
	for name, body := range map[string][]byte{
		"an update":       bytes.Replace(corpus.Review([]byte(`{"spec":{"containers":"none"}}`)), []byte(`"CREATE"`), []byte(`"UPDATE"`), 1),
		"a delete":        bytes.Replace(corpus.Review([]byte(`null`)), []byte(`"CREATE"`), []byte(`"DELETE"`), 1),
		"a connect":       bytes.Replace(corpus.Review([]byte(`{"kind":"PodExecOptions","container":7}`)), []byte(`"CREATE"`), []byte(`"CONNECT"`), 1),
		"another kind":    bytes.ReplaceAll(corpus.Review([]byte(`{"spec":{"containers":"none"}}`)), []byte(`"kind":"Pod"}`), []byte(`"kind":"Widget"}`)),
		"another version": bytes.ReplaceAll(corpus.Review([]byte(`{"spec":{"containers":"none"}}`)), []byte(`"kind":{"group":"",`), []byte(`"kind":{"group":"example.com",`)),
	} {
		t.Run(name, func(t *testing.T) {
			if a := ask(t, body); !a.Allowed || len(a.Patch) > 0 {
				t.Errorf("answer %+v, want it allowed", a.AdmissionResponse)
			}
		})
	}
}

// Fields of the future, anywhere, stay byte for byte where and as they were.
func TestNewerFieldsStayByteForByte(t *testing.T) {
	const future = `"fieldOfTheFuture":{"big":12345678901234567890.10,"list":[1e400,"\u00e4",{"a":null}]}`
	raw := podJSON(t)
	for _, place := range []string{`"metadata":{`, `"spec":{`, `{"args":["istio-iptables"`, `"env":[{`, `"volumes":[{`, `"securityContext":{`} {
		n := bytes.Count(raw, []byte(place))
		if n == 0 {
			t.Fatalf("the recorded pod has no %s", place)
		}
		in := place[:strings.LastIndexByte(place, '{')+1]
		raw = bytes.ReplaceAll(raw, []byte(place), []byte(in+future+","+place[len(in):]))
	}
	fields := bytes.Count(raw, []byte(future))
	a := ask(t, corpus.Review(raw))
	patch, err := jsonpatch.DecodePatch(a.Patch)
	if err != nil || !a.Allowed || bytes.Contains(a.Patch, []byte("fieldOfTheFuture")) {
		t.Fatalf("answer %+v: %v", a.AdmissionResponse, err)
	}
	patched, err := patch.Apply(raw)
	if err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(patched, []byte(future)); n != fields {
		t.Errorf("%d of %d fields are as they were", n, fields)
	}
	// And nothing else differs but what every pod gets.
	plain := ask(t, corpus.Review(podJSON(t)))
	if diff := cmp.Diff(operations(t, plain.Patch), operations(t, a.Patch)); diff != "" {
		t.Errorf("patch of the pod without those fields (-plain +future)\n%s", diff)
	}
	if again := ask(t, corpus.Review(patched)); len(again.Patch) > 0 {
		t.Errorf("admitted again: patch %s", again.Patch)
	}
}

func operations(t *testing.T, patch []byte) []map[string]any {
	t.Helper()
	var ops []map[string]any
	if len(patch) > 0 {
		if err := json.Unmarshal(patch, &ops); err != nil {
			t.Fatalf("patch %s: %v", patch, err)
		}
	}
	return ops
}

// However many containers there are, the answer is the one of a small pod.
func TestThousandsOfContainers(t *testing.T) {
	var pod corev1.Pod
	if err := json.Unmarshal(podJSON(t), &pod); err != nil {
		t.Fatal(err)
	}
	want := paths(operations(t, ask(t, corpus.Review(podJSON(t))).Patch))
	for i := range 5000 {
		c := corev1.Container{Name: fmt.Sprintf("more-%d", i), Image: "example.com/more", Args: []string{"x"}}
		pod.Spec.Containers = append(pod.Spec.Containers, c)
		c.Name = fmt.Sprintf("init-%d", i)
		pod.Spec.InitContainers = append(pod.Spec.InitContainers, c)
	}
	raw, err := json.Marshal(pod)
	if err != nil {
		t.Fatal(err)
	}
	a := ask(t, corpus.Review(raw))
	if got := paths(operations(t, a.Patch)); !a.Allowed || !slices.Equal(got, want) {
		t.Errorf("allowed %t, patch %q, want %q", a.Allowed, got, want)
	}
	if small := ask(t, corpus.Review(podJSON(t))); len(a.Patch) != len(small.Patch) {
		t.Errorf("a patch of %d bytes, that of a small pod has %d", len(a.Patch), len(small.Patch))
	}
}

func paths(ops []map[string]any) []string {
	var all []string
	for _, op := range ops {
		all = append(all, fmt.Sprint(op["op"], " ", op["path"]))
	}
	return all
}

// Wherever the mesh's containers stand among others, ours stand right behind istio-init, and one operation
// puts each there.
func TestInitContainersInAnyOrder(t *testing.T) {
	var pod corev1.Pod
	if err := json.Unmarshal(podJSON(t), &pod); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"first", "second"} {
		pod.Spec.InitContainers = append(pod.Spec.InitContainers, corev1.Container{Name: name, Image: "example.com/x", Args: []string{"-p", "1"}})
	}
	permutations(pod.Spec.InitContainers, func(order []corev1.Container) {
		pod.Spec.InitContainers = order
		raw, err := json.Marshal(pod)
		if err != nil {
			t.Fatal(err)
		}
		init := slices.IndexFunc(order, func(c corev1.Container) bool { return c.Name == "istio-init" })
		a := ask(t, corpus.Review(raw))
		var got []string
		for _, p := range paths(operations(t, a.Patch)) {
			if strings.Contains(p, "Containers") {
				got = append(got, p)
			}
		}
		want := []string{fmt.Sprintf("replace /spec/initContainers/%d/args", init), fmt.Sprintf("add /spec/initContainers/%d", init+1)}
		if !slices.Equal(got, want) {
			t.Errorf("istio-init at %d: %q, want %q", init, got, want)
		}
	})
}

func permutations(list []corev1.Container, visit func([]corev1.Container)) {
	var walk func(int)
	walk = func(n int) {
		if n == len(list) {
			visit(slices.Clone(list))
		}
		for i := n; i < len(list); i++ {
			list[n], list[i] = list[i], list[n]
			walk(n + 1)
			list[n], list[i] = list[i], list[n]
		}
	}
	walk(0)
}

// Amounts are parsed for pods that may be Guaranteed only; then our container is limited as well.
func TestGuaranteedPod(t *testing.T) {
	var pod corev1.Pod
	if err := json.Unmarshal(podJSON(t), &pod); err != nil {
		t.Fatal(err)
	}
	limit := func(list []corev1.Container) {
		for i := range list {
			list[i].Resources = corev1.ResourceRequirements{}
			if err := json.Unmarshal([]byte(`{"limits":{"cpu":"1","memory":1073741824},"requests":{"cpu":"1000m"}}`), &list[i].Resources); err != nil {
				t.Fatal(err)
			}
		}
	}
	limit(pod.Spec.Containers)
	limit(pod.Spec.InitContainers)
	for _, guaranteed := range []bool{true, false} {
		if !guaranteed {
			delete(pod.Spec.Containers[0].Resources.Limits, corev1.ResourceCPU)
		}
		raw, err := json.Marshal(pod)
		if err != nil {
			t.Fatal(err)
		}
		var rules corev1.Container
		for _, op := range operations(t, ask(t, corpus.Review(raw)).Patch) {
			value, _ := op["value"].(map[string]any)
			if b, err := json.Marshal(value); value["name"] == templates.RulesName && err == nil {
				if err := json.Unmarshal(b, &rules); err != nil {
					t.Fatal(err)
				}
			}
		}
		if got := rules.Resources.Limits.Cpu().String(); rules.Name == "" || (got != "0") != guaranteed {
			t.Errorf("guaranteed %t: container %q has a limit of %s CPU", guaranteed, rules.Name, got)
		}
	}
}

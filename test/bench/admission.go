package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"syscall"

	jsonpatch "github.com/evanphx/json-patch/v5"
	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"
	ctrl "sigs.k8s.io/controller-runtime/pkg/webhook/admission"
	"sigs.k8s.io/yaml"

	"github.com/meshvirt/meshvirt/pkg/admit"
	"github.com/meshvirt/meshvirt/pkg/mutate"
	"github.com/meshvirt/meshvirt/pkg/templates"
	"github.com/meshvirt/meshvirt/tools"
)

// noopName is the peer of all that is about admission.
const noopName = "controller-runtime handler that allows"

// sizes are numbers of containers that are added to the recorded pod.
var sizes = []int{1, 10, 100, 1000}

// admission compares the CPU of one admission, as served by HTTP, with controller-runtime's cheapest
// handler on the same review: of a recorded pod, of what came of it, of a pod that is none of ours, and of
// pods of many containers.
func admission() ([]Result, error) {
	ctrllog.SetLogger(logr.Discard()) // the handler that allows has nothing to log
	ours := handler()
	noop := &ctrl.Webhook{Handler: ctrl.HandlerFunc(func(context.Context, ctrl.Request) ctrl.Response { return ctrl.Allowed("") })}

	pod, err := recorded()
	if err != nil {
		return nil, err
	}
	adapted, err := patched(ours, pod)
	if err != nil {
		return nil, err
	}
	unrelated := bytes.Replace(pod, []byte(`"kubevirt.io":"virt-launcher"`), []byte(`"example.com/tier":"web"`), 1)
	var results []Result
	for _, c := range []struct {
		name    string
		pod     []byte
		patched bool
		goal    string
	}{
		{"an adapted pod", pod, true, "<= 0.50"},
		{"a pod adapted before", adapted, false, "<= 1.50"},
		{"an unrelated pod", unrelated, false, "<= 1.00"},
	} {
		body := reviewOf(c.pod)
		if w := serve(ours, body); bytes.Contains(w.Body.Bytes(), []byte(`"patch":`)) != c.patched || !bytes.Contains(w.Body.Bytes(), []byte(`"allowed":true`)) {
			return nil, fmt.Errorf("%s: want it allowed, with a patch: %t; got %s", c.name, c.patched, w.Body)
		}
		cpu, allocs := compareHandlers(ours, noop, body, 15, 400)
		r := compare("admission CPU of "+c.name, "us/review", noopName, cpu[0], cpu[1])
		r.Goal = c.goal
		results = append(results, r, compare("admission allocations of "+c.name, "objects/review", noopName, allocs[0], allocs[1]))
	}
	bySize, err := admissionBySize(ours, noop, pod)
	return append(results, bySize...), err
}

// handler is our own, with what it has by default.
func handler() http.Handler {
	config := mutate.Config{Image: templates.Image{Name: templates.DefaultImage}}
	return admit.New(config, slog.New(slog.NewJSONHandler(io.Discard, nil)), prometheus.NewRegistry())
}

// admissionBySize shows that the cost is linear: a container costs the same among many as among few.
func admissionBySize(ours, noop http.Handler, pod []byte) ([]Result, error) {
	var results []Result
	each := map[int][]float64{} // CPU per container, by round
	for _, n := range sizes {
		larger, err := withContainers(pod, n)
		if err != nil {
			return nil, err
		}
		body := reviewOf(larger)
		if w := serve(ours, body); !bytes.Contains(w.Body.Bytes(), []byte(`"patch":`)) {
			return nil, fmt.Errorf("%d containers: answered without a patch: %s", n, w.Body)
		}
		cpu, _ := compareHandlers(ours, noop, body, 9, max(4, 400/n))
		results = append(results, compare(fmt.Sprintf("admission CPU with %d containers more", n), "us/review", noopName, cpu[0], cpu[1]))
		for _, c := range cpu[0] {
			each[n] = append(each[n], c/float64(n))
		}
	}
	r := compare("admission CPU per container among 1000", "us/container", "among 100", each[1000], each[100])
	r.Goal = "<= 2.00" // quadratic would be 10; what does not fit the caches costs somewhat more
	return append(results, r), nil
}

// compareHandlers measures both sides in turns: CPU in microseconds and allocations, by round.
func compareHandlers(ours, noop http.Handler, body []byte, rounds, reviews int) (cpu, allocs [2][]float64) {
	for range rounds {
		for side, h := range []http.Handler{ours, noop} {
			c, a := measure(reviews, func() { serve(h, body) })
			cpu[side] = append(cpu[side], c*1e6)
			allocs[side] = append(allocs[side], a)
		}
	}
	return cpu, allocs
}

func serve(h http.Handler, body []byte) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodPost, admit.Path, bytes.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// measure gives CPU seconds (of all threads, so with garbage collection) and allocations per call.
func measure(n int, f func()) (cpu, allocs float64) {
	runtime.GC()
	var m0, m1 runtime.MemStats
	runtime.ReadMemStats(&m0)
	c0 := cpuSeconds()
	for range n {
		f()
	}
	c1 := cpuSeconds()
	runtime.ReadMemStats(&m1)
	return (c1 - c0) / float64(n), float64(m1.Mallocs-m0.Mallocs) / float64(n)
}

func cpuSeconds() float64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err) // fails for a bad pointer only
	}
	return float64(u.Utime.Sec+u.Stime.Sec) + float64(u.Utime.Usec+u.Stime.Usec)/1e6
}

// recorded is a pod as KubeVirt and Istio made it, in JSON.
func recorded() ([]byte, error) {
	root, err := tools.Root()
	if err != nil {
		return nil, err
	}
	pod, err := os.ReadFile(filepath.Join(root, "test/corpus/pods/v1.9.0/masquerade-istio-ports/injected-1.31.0-rc.0-native.yaml"))
	if err != nil {
		return nil, err
	}
	return yaml.YAMLToJSON(pod)
}

// patched is what the webhook makes of a pod.
func patched(h http.Handler, pod []byte) ([]byte, error) {
	raw, err := patchFor(h, pod)
	if err != nil {
		return nil, err
	}
	patch, err := jsonpatch.DecodePatch(raw)
	if err != nil {
		return nil, err
	}
	return patch.Apply(pod)
}

// patchFor is the webhook's JSON patch for a pod.
func patchFor(h http.Handler, pod []byte) ([]byte, error) {
	var answer admissionv1.AdmissionReview
	if err := json.Unmarshal(serve(h, reviewOf(pod)).Body.Bytes(), &answer); err != nil {
		return nil, err
	}
	return answer.Response.Patch, nil
}

// withContainers adds n copies of the container compute.
func withContainers(pod []byte, n int) ([]byte, error) {
	var p corev1.Pod
	if err := json.Unmarshal(pod, &p); err != nil {
		return nil, err
	}
	compute := p.Spec.Containers[0]
	for i := range n {
		compute.Name = fmt.Sprintf("more-%d", i)
		p.Spec.Containers = append(p.Spec.Containers, compute)
	}
	return json.Marshal(p)
}

// reviewOf is what the API server sends for the creation of a pod.
func reviewOf(pod []byte) []byte {
	return fmt.Appendf(nil, `{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":{"uid":"705ab4f5-6393-11e8-b7cc-42010a800002",`+
		`"kind":{"group":"","version":"v1","kind":"Pod"},"resource":{"group":"","version":"v1","resource":"pods"},`+
		`"requestKind":{"group":"","version":"v1","kind":"Pod"},"requestResource":{"group":"","version":"v1","resource":"pods"},`+
		`"namespace":"mesh","operation":"CREATE","userInfo":{"username":"system:serviceaccount:kubevirt:kubevirt-controller"},`+
		`"object":%s,"oldObject":null,"dryRun":false,"options":{"kind":"CreateOptions","apiVersion":"meta.k8s.io/v1"}}}`, pod)
}

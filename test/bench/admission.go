package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"syscall"

	"github.com/prometheus/client_golang/prometheus"
	ctrl "sigs.k8s.io/controller-runtime/pkg/webhook/admission"
	"sigs.k8s.io/yaml"

	"github.com/meshvirt/meshvirt/pkg/admit"
	"github.com/meshvirt/meshvirt/pkg/mutate"
	"github.com/meshvirt/meshvirt/pkg/templates"
	"github.com/meshvirt/meshvirt/tools"
)

// admission compares one admission of a recorded pod, as served by HTTP, with controller-runtime's
// cheapest handler on the same review.
func admission() ([]Result, error) {
	body, err := review()
	if err != nil {
		return nil, err
	}
	log := slog.New(slog.NewJSONHandler(io.Discard, nil))
	config := mutate.Config{Image: templates.Image{Name: templates.DefaultImage}}
	ours := admit.New(config, log, prometheus.NewRegistry())
	noop := &ctrl.Webhook{Handler: ctrl.HandlerFunc(func(context.Context, ctrl.Request) ctrl.Response { return ctrl.Allowed("") })}
	if w := serve(ours, body); !bytes.Contains(w.Body.Bytes(), []byte(`"patch":`)) {
		return nil, fmt.Errorf("the review is answered without a patch: %s", w.Body)
	}
	const rounds, reviews = 9, 1500
	var cpu, allocs [2][]float64
	for range rounds {
		for side, h := range []http.Handler{ours, noop} {
			c, a := measure(reviews, func() { serve(h, body) })
			cpu[side] = append(cpu[side], c*1e6)
			allocs[side] = append(allocs[side], a)
		}
	}
	const peer = "controller-runtime handler that allows"
	return []Result{
		compare("admission CPU", "us/review", peer, cpu[0], cpu[1]),
		compare("admission allocations", "objects/review", peer, allocs[0], allocs[1]),
	}, nil
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

// review is what the API server sends for the creation of a recorded pod.
func review() ([]byte, error) {
	root, err := tools.Root()
	if err != nil {
		return nil, err
	}
	pod, err := os.ReadFile(filepath.Join(root, "test/corpus/pods/v1.9.0/masquerade-istio-ports/injected-1.31.0-rc.0-native.yaml"))
	if err != nil {
		return nil, err
	}
	if pod, err = yaml.YAMLToJSON(pod); err != nil {
		return nil, err
	}
	return fmt.Appendf(nil, `{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":{"uid":"705ab4f5-6393-11e8-b7cc-42010a800002",`+
		`"kind":{"group":"","version":"v1","kind":"Pod"},"resource":{"group":"","version":"v1","resource":"pods"},`+
		`"requestKind":{"group":"","version":"v1","kind":"Pod"},"requestResource":{"group":"","version":"v1","resource":"pods"},`+
		`"namespace":"mesh","operation":"CREATE","userInfo":{"username":"system:serviceaccount:kubevirt:kubevirt-controller"},`+
		`"object":%s,"oldObject":null,"dryRun":false,"options":{"kind":"CreateOptions","apiVersion":"meta.k8s.io/v1"}}}`, pod), nil
}

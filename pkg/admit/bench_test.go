package admit

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	ctrl "sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/meshvirt/meshvirt/test/corpus"
)

// BenchmarkReview is one admission; BenchmarkNoop that of controller-runtime's cheapest handler. `make
// bench` compares them in one run; these are for profiles.
func BenchmarkReview(b *testing.B) {
	benchmark(b, New(config, slog.New(slog.NewJSONHandler(io.Discard, nil)), prometheus.NewRegistry()))
}

func BenchmarkNoop(b *testing.B) {
	benchmark(b, &ctrl.Webhook{Handler: ctrl.HandlerFunc(func(context.Context, ctrl.Request) ctrl.Response { return ctrl.Allowed("") })})
}

func benchmark(b *testing.B, h http.Handler) {
	body := corpus.Review(podJSON(b))
	b.ReportAllocs()
	for b.Loop() {
		r := httptest.NewRequest(http.MethodPost, Path, bytes.NewReader(body))
		r.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
	}
}

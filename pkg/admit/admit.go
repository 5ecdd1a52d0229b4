// Package admit is the edge to the API server: it decodes an AdmissionReview's pod, has pkg/mutate
// adapt it, and answers with a patch, a denial or nothing, plus one log line and one count.
package admit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/prometheus/client_golang/prometheus"
	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/meshvirt/meshvirt/pkg/mutate"
)

// Path is where the webhook serves; the chart's configuration points there.
const Path = "/mutate"

// Results of a request, as the log line and the metric's label "result" give them.
const (
	resultPatched   = "patched"   // allowed, with a patch
	resultUnchanged = "unchanged" // allowed, the pod is as it was
	resultDenied    = "denied"    // a bad annotation or container; the message names each
	resultErrored   = "errored"   // not a review of a pod's creation that can be read
)

// Handler answers reviews of pods. It is safe for concurrent use.
type Handler struct {
	config   mutate.Config
	log      *slog.Logger
	requests *prometheus.CounterVec
	duration prometheus.Histogram
}

// New gives a handler that adapts pods by config, logs a line a request to log and registers its
// metrics with registry.
func New(config mutate.Config, log *slog.Logger, registry prometheus.Registerer) *Handler {
	h := &Handler{
		config: config,
		log:    log,
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "meshvirt_admission_requests_total",
			Help: "Admission requests by result (patched, unchanged, denied, errored), mode and reason.",
		}, []string{"result", "mode", "reason"}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "meshvirt_admission_duration_seconds",
			Help:    "Time from the decoded review to the answer, in seconds.",
			Buckets: prometheus.ExponentialBuckets(25e-6, 2, 14), // 25 us to 0.2 s
		}),
	}
	registry.MustRegister(h.requests, h.duration)
	return h
}

var podKind = schema.GroupKind{Kind: "Pod"}

// Handle implements admission.Handler.
func (h *Handler) Handle(_ context.Context, req admission.Request) admission.Response {
	start := time.Now()
	resp, report, result := h.answer(req)
	took := time.Since(start)

	h.requests.WithLabelValues(result, string(report.Mode), string(report.Reason)).Inc()
	h.duration.Observe(took.Seconds())
	level := slog.LevelInfo
	if !resp.Allowed {
		level = slog.LevelWarn
	}
	attrs := []slog.Attr{
		slog.String("uid", string(req.UID)), slog.String("namespace", req.Namespace), slog.String("name", req.Name),
		slog.String("result", result), slog.String("mode", string(report.Mode)), slog.String("reason", string(report.Reason)),
		slog.String("mesh", report.Mesh), slog.Int("operations", len(resp.Patches)), slog.Duration("took", took),
	}
	if resp.Result != nil && resp.Result.Message != "" {
		attrs = append(attrs, slog.String("message", resp.Result.Message))
	}
	h.log.LogAttrs(context.Background(), level, "admission", attrs...)
	return resp
}

func (h *Handler) answer(req admission.Request) (admission.Response, mutate.Report, string) {
	if req.UID == "" || req.Operation == "" {
		return admission.Errored(http.StatusBadRequest, errors.New("request.uid or request.operation is empty, want an AdmissionReview")), mutate.Report{}, resultErrored
	}
	if req.Kind.Group != "" || req.Kind.Kind != "Pod" || req.SubResource != "" || req.Operation != admissionv1.Create {
		// The configuration asks for nothing else; whoever asks all the same gets no change.
		return admission.Allowed(""), mutate.Report{}, resultUnchanged
	}
	var pod corev1.Pod
	if err := decode(req.Object.Raw, &pod); err != nil {
		return admission.Errored(http.StatusBadRequest, err), mutate.Report{}, resultErrored
	}
	adapted, report, errs := mutate.Apply(&pod, mutate.Facts{}, h.config)
	if len(errs) > 0 {
		name := pod.Name
		if name == "" {
			name = pod.GenerateName
		}
		status := apierrors.NewInvalid(podKind, name, errs).Status()
		return admission.Response{AdmissionResponse: admissionv1.AdmissionResponse{Result: &status, Warnings: report.Warnings}}, report, resultDenied
	}
	resp := admission.Allowed("")
	resp.Warnings = report.Warnings
	resp.Patches = mutate.Patch(&pod, adapted)
	if len(resp.Patches) == 0 {
		return resp, report, resultUnchanged
	}
	return resp, report, resultPatched
}

// decode reads a pod. Unlike encoding/json it compares names exactly and refuses one that is there
// twice, as the API server does in strict mode.
func decode(raw []byte, pod *corev1.Pod) error {
	if len(raw) == 0 || string(raw) == "null" {
		return errors.New("request.object is empty, want a pod")
	}
	if err := json.Unmarshal(raw, pod); err != nil {
		return fmt.Errorf("request.object is no pod: %w", err)
	}
	return nil
}

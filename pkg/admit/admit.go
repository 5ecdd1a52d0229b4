// Package admit is the edge to the API server: it takes an AdmissionReview's pod, has pkg/mutate
// adapt it, and answers with a patch, a denial or nothing, plus one log line and one count.
package admit

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	admissionv1 "k8s.io/api/admission/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/meshvirt/meshvirt/pkg/mutate"
	"github.com/meshvirt/meshvirt/pkg/patch"
	"github.com/meshvirt/meshvirt/pkg/review"
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
	// Cluster tells what is known beyond a pod and takes events. Nil, the pod alone decides. It is to be
	// set before the first review.
	Cluster *Cluster

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

// outcome is what the log line and the metrics say of one request.
type outcome struct {
	req        *review.Request // nil if none could be read
	report     mutate.Report
	result     string
	message    string // for denials and errors
	operations int
	took       time.Duration
}

func (h *Handler) record(o outcome) {
	h.requests.WithLabelValues(o.result, string(o.report.Mode), string(o.report.Reason)).Inc()
	h.duration.Observe(o.took.Seconds())
	attrs := make([]slog.Attr, 0, 12)
	if o.req != nil {
		attrs = append(attrs, slog.String("uid", string(o.req.UID)), slog.String("namespace", o.req.Namespace),
			slog.String("name", o.req.Name), slog.Bool("dryRun", o.req.DryRun))
	}
	attrs = append(attrs, slog.String("result", o.result), slog.String("mode", string(o.report.Mode)), slog.String("reason", string(o.report.Reason)),
		slog.String("mesh", o.report.Mesh), slog.Int("operations", o.operations), slog.Duration("took", o.took))
	level := slog.LevelInfo
	if o.message != "" {
		level = slog.LevelWarn
		attrs = append(attrs, slog.String("message", o.message))
	}
	h.log.LogAttrs(context.Background(), level, "admission", attrs...)
}

// Handle answers one request; the caller sets the response's UID. A panic is answered as an error:
// it must not take the replica, and with it other pods' admissions, down.
func (h *Handler) Handle(req *review.Request) (resp *admissionv1.AdmissionResponse) {
	start := time.Now()
	o := outcome{req: req}
	defer func() {
		if p := recover(); p != nil {
			o.result, resp = resultErrored, errored(http.StatusInternalServerError, fmt.Errorf("panic: %v", p))
			h.log.Error("panic", "value", p, "stack", string(debug.Stack()))
		}
		if resp.Result != nil {
			o.message = resp.Result.Message
		}
		o.took = time.Since(start)
		h.record(o)
	}()
	return h.answer(req, &o)
}

var podKind = schema.GroupKind{Kind: "Pod"}

func (h *Handler) answer(req *review.Request, o *outcome) *admissionv1.AdmissionResponse {
	if req.Kind.Group != podKind.Group || req.Kind.Kind != podKind.Kind || req.SubResource != "" || req.Operation != admissionv1.Create {
		// The configuration asks for nothing else; whoever asks all the same gets no change.
		o.result = resultUnchanged
		return &admissionv1.AdmissionResponse{Allowed: true}
	}
	pod, err := req.Pod()
	if err != nil {
		o.result = resultErrored
		return errored(http.StatusBadRequest, err)
	}
	if req.Name == "" {
		req.Name = pod.GenerateName // for the log: the API server gives the name later
	}
	adapted, report, errs := mutate.Apply(pod, h.Cluster.Facts(req.Namespace, pod), h.config)
	o.report = report
	defer func() { h.Cluster.Report(req, pod, report, o.result, errs.ToAggregate()) }()
	resp := &admissionv1.AdmissionResponse{Allowed: len(errs) == 0, Warnings: report.Warnings}
	if len(errs) > 0 {
		o.result = resultDenied
		status := apierrors.NewInvalid(podKind, req.Name, errs).Status()
		resp.Result = &status
		return resp
	}
	ops := patch.Between(pod, adapted)
	if o.operations = len(ops); len(ops) == 0 {
		o.result = resultUnchanged
		return resp
	}
	encoded, err := patch.Encode(ops)
	if err != nil {
		o.result = resultErrored
		return errored(http.StatusInternalServerError, fmt.Errorf("encode the patch: %w", err))
	}
	o.result = resultPatched
	jsonPatch := admissionv1.PatchTypeJSONPatch
	resp.Patch, resp.PatchType = encoded, &jsonPatch
	return resp
}

func errored(code int32, err error) *admissionv1.AdmissionResponse {
	return &admissionv1.AdmissionResponse{Result: &metav1.Status{Status: metav1.StatusFailure, Code: code, Message: err.Error()}}
}

// encode puts a response into a review. The types are made for encoding/json.
func encode(resp *admissionv1.AdmissionResponse) ([]byte, error) {
	return json.Marshal(admissionv1.AdmissionReview{TypeMeta: review.TypeMeta, Response: resp})
}

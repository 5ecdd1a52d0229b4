package admit

import (
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// maxReview is the largest body that is read, in bytes. A pod in etcd is at most 1.5 MiB by default,
// a request to the API server at most 3 MiB; a review holds the pod once and is little larger.
const maxReview = 7 << 20

// Request is the part of an AdmissionReview's request that is read.
type Request struct {
	UID         types.UID               `json:"uid"`
	Kind        metav1.GroupVersionKind `json:"kind"`
	SubResource string                  `json:"subResource"`
	Namespace   string                  `json:"namespace"`
	Name        string                  `json:"name"`
	Operation   admissionv1.Operation   `json:"operation"`
	DryRun      bool                    `json:"dryRun"`
	// Object is the pod as it came, in JSON.
	Object jsontext.Value `json:"object"`
}

// review is admissionv1.AdmissionReview with its request cut down to Request.
type review struct {
	APIVersion string   `json:"apiVersion"`
	Kind       string   `json:"kind"`
	Request    *Request `json:"request"`
}

// want is what this webhook speaks; the chart's configuration says the same to the API server.
var want = metav1.TypeMeta{APIVersion: "admission.k8s.io/v1", Kind: "AdmissionReview"}

// ServeHTTP answers one review. What is no review is answered by an HTTP error, which the API server
// reports as a call that failed; everything else by HTTP 200 and a response.
//
// It stands in for controller-runtime's admission.Webhook, whose decoder reads the review twice and
// takes four fifths of a cheap handler's time.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	req, code, err := read(r)
	if err != nil {
		h.refuse(w, code, err)
		return
	}
	resp := h.Handle(req)
	resp.UID = req.UID
	b, err := encode(resp)
	if err != nil {
		h.refuse(w, http.StatusInternalServerError, fmt.Errorf("encode the response: %w", err))
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(b) // a caller that hung up gets no answer
}

func (h *Handler) refuse(w http.ResponseWriter, code int, err error) {
	h.record(outcome{result: resultErrored, message: err.Error()})
	http.Error(w, err.Error(), code)
}

// read takes the request out of a review, and gives the HTTP status for the error if there is none.
func read(r *http.Request) (*Request, int, error) {
	if t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || t != "application/json" {
		return nil, http.StatusUnsupportedMediaType, fmt.Errorf("Content-Type is %q, want application/json", r.Header.Get("Content-Type"))
	}
	if r.ContentLength > maxReview {
		return nil, http.StatusRequestEntityTooLarge, errTooLarge
	}
	body, err := readBody(r)
	if err != nil {
		return nil, http.StatusBadRequest, fmt.Errorf("read the review: %w", err)
	}
	if len(body) > maxReview {
		return nil, http.StatusRequestEntityTooLarge, errTooLarge
	}
	var in review
	if err := json.Unmarshal(body, &in); err != nil {
		return nil, http.StatusBadRequest, fmt.Errorf("want an AdmissionReview in JSON: %w", err)
	}
	switch {
	case in.APIVersion != want.APIVersion || in.Kind != want.Kind:
		return nil, http.StatusBadRequest, fmt.Errorf("got %q of %q, want %s of %s", in.Kind, in.APIVersion, want.Kind, want.APIVersion)
	case in.Request == nil:
		return nil, http.StatusBadRequest, errors.New("request is null, want an admission request")
	case in.Request.UID == "" || in.Request.Operation == "":
		return nil, http.StatusBadRequest, errors.New("request.uid or request.operation is empty, want both")
	}
	return in.Request, 0, nil
}

var errTooLarge = fmt.Errorf("the review has more than %d bytes", maxReview)

// readBody reads at once what Content-Length promises, which the API server gives.
func readBody(r *http.Request) ([]byte, error) {
	limited := io.LimitReader(r.Body, maxReview+1)
	if r.ContentLength < 0 {
		return io.ReadAll(limited)
	}
	body := make([]byte, r.ContentLength)
	_, err := io.ReadFull(limited, body)
	return body, err
}

// unread are parts of a pod that no step reads. Skipping them halves the time of decoding; they are
// in the API server's hands, and Patch never touches them.
var unread = json.WithUnmarshalers(json.JoinUnmarshalers(
	skip[[]metav1.ManagedFieldsEntry](), skip[[]corev1.Volume](), skip[[]corev1.VolumeMount](),
	skip[*corev1.Affinity](), skip[[]corev1.Toleration](), skip[*corev1.Lifecycle](), skip[corev1.PodStatus](),
))

func skip[T any]() *json.Unmarshalers {
	return json.UnmarshalFromFunc(func(d *jsontext.Decoder, _ *T) error { return d.SkipValue() })
}

// decode reads a pod. Unlike encoding/json it compares names exactly and refuses one that is there
// twice, as the API server does in strict mode.
func decode(raw []byte, pod *corev1.Pod) error {
	if len(raw) == 0 || string(raw) == "null" {
		return errors.New("request.object is empty, want a pod")
	}
	if err := json.Unmarshal(raw, pod, unread); err != nil {
		return fmt.Errorf("request.object is no pod: %w", err)
	}
	return nil
}

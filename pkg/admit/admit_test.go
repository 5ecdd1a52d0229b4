package admit

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshvirt/meshvirt/pkg/mutate"
	"github.com/meshvirt/meshvirt/pkg/templates"
	"github.com/meshvirt/meshvirt/test/corpus"
)

var config = mutate.Config{Image: templates.Image{Name: "example.com/dataplane:test"}}

func podJSON(t testing.TB) []byte {
	t.Helper()
	return corpus.JSON(t, corpus.Sidecar)
}

type answer struct {
	*admissionv1.AdmissionResponse
	log string
	h   *Handler
}

// ask sends a review by HTTP, as the API server does.
func ask(t *testing.T, body []byte) answer {
	t.Helper()
	var log bytes.Buffer
	h := New(config, slog.New(slog.NewJSONHandler(&log, nil)), prometheus.NewRegistry())
	r := httptest.NewRequest(http.MethodPost, Path, bytes.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	if w.Code != http.StatusOK { // an HTTP error, as the API server takes it
		return answer{&admissionv1.AdmissionResponse{Result: &metav1.Status{Code: int32(w.Code), Message: w.Body.String()}}, log.String(), h}
	}
	var out admissionv1.AdmissionReview
	if err := json.Unmarshal(w.Body.Bytes(), &out); err != nil || out.Response == nil {
		t.Fatalf("answer %q: %v", w.Body, err)
	}
	return answer{out.Response, log.String(), h}
}

func TestPatched(t *testing.T) {
	a := ask(t, corpus.Review(podJSON(t)))
	var ops []struct{ Op, Path string }
	if err := json.Unmarshal(a.Patch, &ops); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, op := range ops {
		got = append(got, op.Op+" "+op.Path)
	}
	want := `remove /metadata/annotations/istio.io~1reroute-virtual-interfaces
remove /metadata/annotations/traffic.sidecar.istio.io~1kubevirtInterfaces
add /metadata/annotations/meshvirt.io~1status
add /metadata/annotations/meshvirt.io~1undo
add /metadata/annotations/traffic.sidecar.istio.io~1excludeInterfaces
add /spec/volumes/-
replace /spec/initContainers/0/args
add /spec/initContainers/1`
	if s := strings.Join(got, "\n"); !a.Allowed || s != want {
		t.Errorf("allowed %t, patch\n%s\nwant\n%s", a.Allowed, s, want)
	}
	if strings.Count(a.log, "\n") != 1 || !strings.Contains(a.log, `"result":"patched","mode":"rules","reason":"MasqueradeSidecar"`) {
		t.Errorf("log %s, want one line", a.log)
	}
	if n := testutil.ToFloat64(a.h.requests.WithLabelValues("patched", "rules", "MasqueradeSidecar")); n != 1 {
		t.Errorf("counted %v times, want once", n)
	}
}

func TestUnchanged(t *testing.T) {
	for name, body := range map[string][]byte{
		"not ours":       corpus.Review([]byte(`{"metadata":{"name":"web"},"spec":{"containers":[{"name":"web"}]}}`)),
		"another kind":   bytes.ReplaceAll(corpus.Review(podJSON(t)), []byte(`"kind":"Pod"}`), []byte(`"kind":"Service"}`)),
		"an update":      bytes.Replace(corpus.Review(podJSON(t)), []byte(`"CREATE"`), []byte(`"UPDATE"`), 1),
		"a connect":      bytes.Replace(corpus.Review([]byte(`null`)), []byte(`"CREATE"`), []byte(`"CONNECT"`), 1),
		"a sub-resource": bytes.Replace(corpus.Review([]byte(`null`)), []byte(`"operation"`), []byte(`"subResource":"exec","operation"`), 1),
	} {
		t.Run(name, func(t *testing.T) {
			a := ask(t, body)
			if !a.Allowed || len(a.Patch) > 0 || !strings.Contains(a.log, `"result":"unchanged"`) {
				t.Errorf("allowed %t, patch %s, log %s", a.Allowed, a.Patch, a.log)
			}
		})
	}
}

func TestDeniedNamesEveryBadField(t *testing.T) {
	pod := bytes.Replace(podJSON(t), []byte(`"annotations":{`), []byte(`"annotations":{"meshvirt.io/mode":"teleport","meshvirt.io/exclude-inbound-ports":"70000","meshvirt.io/nonsense":"1",`), 1)
	a := ask(t, corpus.Review(pod))
	if a.Allowed || a.Result == nil || a.Result.Code != http.StatusUnprocessableEntity {
		t.Fatalf("answer %+v, want 422", a.AdmissionResponse)
	}
	for _, want := range []string{`metadata.annotations[meshvirt.io/mode]: Invalid value: "teleport": want one of`, `metadata.annotations[meshvirt.io/exclude-inbound-ports]: Invalid value: "70000"`, "virt-launcher-vm-web-"} {
		if !strings.Contains(a.Result.Message, want) {
			t.Errorf("message %q, want %q in it", a.Result.Message, want)
		}
	}
	if a.Result.Details == nil || len(a.Result.Details.Causes) != 2 {
		t.Errorf("details %+v, want two causes", a.Result.Details)
	}
	if len(a.Warnings) != 1 || !strings.Contains(a.Warnings[0], "meshvirt.io/nonsense") {
		t.Errorf("warnings %q", a.Warnings)
	}
	if !strings.Contains(a.log, `"level":"WARN"`) || !strings.Contains(a.log, `"result":"denied"`) {
		t.Errorf("log %s", a.log)
	}
}

func TestErrored(t *testing.T) {
	for name, c := range map[string]struct {
		body []byte
		code int32
		want string
	}{
		"no object":     {corpus.Review([]byte(`null`)), 400, "request.object is empty"},
		"not a pod":     {corpus.Review([]byte(`[]`)), 400, "request.object is no pod"},
		"a type error":  {corpus.Review([]byte(`{"spec":{"containers":"none"}}`)), 400, "request.object is no pod"},
		"the same key":  {corpus.Review([]byte(`{"metadata":{"name":"a","name":"b"}}`)), 400, "duplicate"},
		"truncated":     {corpus.Review(podJSON(t))[:2000], 400, "want an AdmissionReview in JSON"},
		"a pod":         {[]byte(`{"kind":"Pod","apiVersion":"v1"}`), 400, `got "Pod" of "v1", want AdmissionReview of admission.k8s.io/v1`},
		"no request":    {[]byte(`{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":null}`), 400, "request is null"},
		"no operation":  {bytes.Replace(corpus.Review([]byte(`null`)), []byte(`"CREATE"`), []byte(`""`), 1), 400, "request.operation is empty"},
		"nothing":       {nil, 400, "want an AdmissionReview in JSON"},
		"null":          {[]byte("null"), 400, "want AdmissionReview"},
		"other version": {bytes.Replace(corpus.Review(podJSON(t)), []byte("admission.k8s.io/v1"), []byte("admission.k8s.io/v1beta1"), 1), 400, `of "admission.k8s.io/v1beta1", want`},
		"too large":     {corpus.Review(append(bytes.Repeat([]byte(" "), maxReview), podJSON(t)...)), 413, "more than 7340032 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			a := ask(t, c.body)
			if a.Allowed || len(a.Patch) > 0 || a.Result == nil || a.Result.Code != c.code || !strings.Contains(a.Result.Message, c.want) {
				t.Errorf("answer %+v, want %d with %q", a.AdmissionResponse, c.code, c.want)
			}
			if !strings.Contains(a.log, `"result":"errored"`) || strings.Count(a.log, "\n") != 1 {
				t.Errorf("log %s, want one line", a.log)
			}
		})
	}
}

// A body without Content-Length is bounded as well.
func TestChunkedBody(t *testing.T) {
	h := New(config, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	for want, body := range map[int][]byte{200: corpus.Review(podJSON(t)), 413: bytes.Repeat([]byte(" "), maxReview+1)} {
		r := httptest.NewRequest(http.MethodPost, Path, bytes.NewReader(body))
		r.ContentLength = -1
		r.Header.Set("Content-Type", "application/json; charset=utf-8")
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != want {
			t.Errorf("status %d %s, want %d", w.Code, w.Body, want)
		}
	}
}

func TestContentType(t *testing.T) {
	r := httptest.NewRequest(http.MethodPost, Path, bytes.NewReader(corpus.Review(podJSON(t))))
	w := httptest.NewRecorder()
	New(config, slog.New(slog.DiscardHandler), prometheus.NewRegistry()).ServeHTTP(w, r)
	if w.Code != http.StatusUnsupportedMediaType || !strings.Contains(w.Body.String(), "want application/json") {
		t.Errorf("status %d %s", w.Code, w.Body)
	}
}

// Fields that this Kubernetes library does not know stay byte for byte: no operation touches them.
func TestUnknownFieldsAreNotTouched(t *testing.T) {
	pod := bytes.Replace(podJSON(t), []byte(`"spec":{`), []byte(`"spec":{"fieldOfTheFuture":{"a":[1,2.50,"x"]},`), 1)
	a := ask(t, corpus.Review(pod))
	if !a.Allowed || len(a.Patch) == 0 || bytes.Contains(a.Patch, []byte("fieldOfTheFuture")) {
		t.Errorf("answer %+v", a.AdmissionResponse)
	}
	if want := ask(t, corpus.Review(podJSON(t))); !bytes.Equal(a.Patch, want.Patch) {
		t.Errorf("patch %s, want that of the pod without the field", a.Patch)
	}
}

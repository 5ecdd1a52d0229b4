package admit

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	jsonpatch "github.com/evanphx/json-patch/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/meshvirt/meshvirt/pkg/mutate"
	"github.com/meshvirt/meshvirt/pkg/patch"
	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/templates"
)

const recorded = "../../test/corpus/pods/v1.9.0/masquerade-istio-ports/injected-1.31.0-rc.0-native.yaml"

var config = mutate.Config{Image: templates.Image{Name: "example.com/dataplane:test"}}

func podJSON(t testing.TB) []byte {
	t.Helper()
	return readJSON(t, recorded)
}

// readJSON gives a file of YAML in JSON.
func readJSON(t testing.TB, file string) []byte {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if b, err = yaml.YAMLToJSON(b); err != nil {
		t.Fatal(err)
	}
	return b
}

// reviewOf is what the API server sends for the creation of a pod.
func reviewOf(pod []byte) []byte {
	return fmt.Appendf(nil, `{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":{"uid":"705ab4f5-6393-11e8-b7cc-42010a800002",
		"kind":{"group":"","version":"v1","kind":"Pod"},"resource":{"group":"","version":"v1","resource":"pods"},
		"requestKind":{"group":"","version":"v1","kind":"Pod"},"requestResource":{"group":"","version":"v1","resource":"pods"},
		"namespace":"mesh","operation":"CREATE","userInfo":{"username":"system:serviceaccount:kubevirt:kubevirt-controller"},
		"object":%s,"oldObject":null,"dryRun":false,"options":{"kind":"CreateOptions","apiVersion":"meta.k8s.io/v1"}}}`, pod)
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
	a := ask(t, reviewOf(podJSON(t)))
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
		"not ours":       reviewOf([]byte(`{"metadata":{"name":"web"},"spec":{"containers":[{"name":"web"}]}}`)),
		"another kind":   bytes.ReplaceAll(reviewOf(podJSON(t)), []byte(`"kind":"Pod"}`), []byte(`"kind":"Service"}`)),
		"an update":      bytes.Replace(reviewOf(podJSON(t)), []byte(`"CREATE"`), []byte(`"UPDATE"`), 1),
		"a connect":      bytes.Replace(reviewOf([]byte(`null`)), []byte(`"CREATE"`), []byte(`"CONNECT"`), 1),
		"a sub-resource": bytes.Replace(reviewOf([]byte(`null`)), []byte(`"operation"`), []byte(`"subResource":"exec","operation"`), 1),
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
	a := ask(t, reviewOf(pod))
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
		"no object":     {reviewOf([]byte(`null`)), 400, "request.object is empty"},
		"not a pod":     {reviewOf([]byte(`[]`)), 400, "request.object is no pod"},
		"a type error":  {reviewOf([]byte(`{"spec":{"containers":"none"}}`)), 400, "request.object is no pod"},
		"the same key":  {reviewOf([]byte(`{"metadata":{"name":"a","name":"b"}}`)), 400, "duplicate"},
		"truncated":     {reviewOf(podJSON(t))[:2000], 400, "want an AdmissionReview in JSON"},
		"a pod":         {[]byte(`{"kind":"Pod","apiVersion":"v1"}`), 400, `got "Pod" of "v1", want AdmissionReview of admission.k8s.io/v1`},
		"no request":    {[]byte(`{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":null}`), 400, "request is null"},
		"no operation":  {bytes.Replace(reviewOf([]byte(`null`)), []byte(`"CREATE"`), []byte(`""`), 1), 400, "request.operation is empty"},
		"nothing":       {nil, 400, "want an AdmissionReview in JSON"},
		"null":          {[]byte("null"), 400, "want AdmissionReview"},
		"other version": {bytes.Replace(reviewOf(podJSON(t)), []byte("admission.k8s.io/v1"), []byte("admission.k8s.io/v1beta1"), 1), 400, `of "admission.k8s.io/v1beta1", want`},
		"too large":     {reviewOf(append(bytes.Repeat([]byte(" "), maxReview), podJSON(t)...)), 413, "more than 7340032 bytes"},
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
	for want, body := range map[int][]byte{200: reviewOf(podJSON(t)), 413: bytes.Repeat([]byte(" "), maxReview+1)} {
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
	r := httptest.NewRequest(http.MethodPost, Path, bytes.NewReader(reviewOf(podJSON(t))))
	w := httptest.NewRecorder()
	New(config, slog.New(slog.DiscardHandler), prometheus.NewRegistry()).ServeHTTP(w, r)
	if w.Code != http.StatusUnsupportedMediaType || !strings.Contains(w.Body.String(), "want application/json") {
		t.Errorf("status %d %s", w.Code, w.Body)
	}
}

// Fields that this Kubernetes library does not know stay byte for byte: no operation touches them.
func TestUnknownFieldsAreNotTouched(t *testing.T) {
	pod := bytes.Replace(podJSON(t), []byte(`"spec":{`), []byte(`"spec":{"fieldOfTheFuture":{"a":[1,2.50,"x"]},`), 1)
	a := ask(t, reviewOf(pod))
	if !a.Allowed || len(a.Patch) == 0 || bytes.Contains(a.Patch, []byte("fieldOfTheFuture")) {
		t.Errorf("answer %+v", a.AdmissionResponse)
	}
	if want := ask(t, reviewOf(podJSON(t))); !bytes.Equal(a.Patch, want.Patch) {
		t.Errorf("patch %s, want that of the pod without the field", a.Patch)
	}
}

// What is decoded is enough: every recorded pod, and every one that was adapted before, comes out as if
// encoding/json had read the whole.
func TestDecodedPodIsAdaptedAlike(t *testing.T) {
	files, err := filepath.Glob("../../test/corpus/pods*/*/*/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	pods := 0
	for _, file := range files {
		if filepath.Base(file) == "vmi.yaml" {
			continue
		}
		raw := readJSON(t, file)
		for _, mode := range plan.Modes {
			pods++
			first := adaptedAlike(t, file, raw, mode)
			adaptedAlike(t, file+", again", first, "")
		}
	}
	if pods < 1000 {
		t.Errorf("%d pods were compared, want those of the corpus in every mode", pods)
	}
}

// adaptedAlike compares, and gives what the webhook makes of the pod.
func adaptedAlike(t *testing.T, name string, raw []byte, mode plan.Mode) []byte {
	t.Helper()
	r := httptest.NewRequest(http.MethodPost, Path, bytes.NewReader(reviewOf(raw)))
	r.Header.Set("Content-Type", "application/json")
	req, _, err := read(r, &bytes.Buffer{})
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	parts, err := req.decode()
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	whole := &corev1.Pod{}
	if err := json.Unmarshal(raw, whole); err != nil {
		t.Fatal(err)
	}
	var patches, reports [2][]byte
	for i, pod := range []*corev1.Pod{parts, whole} {
		c := config
		c.DefaultMode = mode
		adapted, report, errs := mutate.Apply(pod, mutate.Facts{}, c)
		if patches[i], err = patch.Encode(patch.Between(pod, adapted)); err != nil {
			t.Fatal(err)
		}
		reports[i] = fmt.Appendf(nil, "%s%v", report, errs)
	}
	if !bytes.Equal(patches[0], patches[1]) || !bytes.Equal(reports[0], reports[1]) {
		t.Errorf("%s, mode %s: patches\n%s\n%s\nreports\n%s\n%s", name, mode, patches[0], patches[1], reports[0], reports[1])
	}
	patch, err := jsonpatch.DecodePatch(patches[0])
	if err != nil {
		t.Fatal(err)
	}
	patched, err := patch.Apply(raw)
	if err != nil {
		t.Fatal(err)
	}
	return patched
}

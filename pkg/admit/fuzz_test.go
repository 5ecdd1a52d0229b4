package admit

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	jsonpatch "github.com/evanphx/json-patch/v5"
	"github.com/prometheus/client_golang/prometheus"
	admissionv1 "k8s.io/api/admission/v1"
	"sigs.k8s.io/yaml"

	"github.com/meshvirt/meshvirt/test/corpus"
)

// Any body gets an HTTP error or a well-formed answer; a patch applies to the pod of the review, and
// the patched pod needs no other patch.
func FuzzReview(f *testing.F) {
	files, err := filepath.Glob("../../test/corpus/pods/v1.9.0/masquerade-*/injected-1.31.0-rc.0-*.yaml")
	if err != nil || len(files) == 0 {
		f.Fatalf("no seeds: %v", err)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		pod, err := yaml.YAMLToJSON(b)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(corpus.Review(pod))
	}
	f.Add(corpus.Review([]byte("null")))
	h := New(config, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	f.Fuzz(func(t *testing.T, body []byte) {
		resp := post(t, h, body)
		if resp == nil || len(resp.Patch) == 0 {
			return
		}
		var in struct {
			Request struct{ Object json.RawMessage }
		}
		if err := json.Unmarshal(body, &in); err != nil {
			t.Fatalf("a patch for what is no JSON: %v", err)
		}
		patch, err := jsonpatch.DecodePatch(resp.Patch)
		if err != nil {
			t.Fatalf("patch %s: %v", resp.Patch, err)
		}
		patched, err := patch.Apply(in.Request.Object)
		if err != nil {
			t.Fatalf("patch %s does not apply: %v", resp.Patch, err)
		}
		if again := post(t, h, corpus.Review(patched)); again == nil || !again.Allowed || len(again.Patch) > 0 {
			t.Errorf("the patched pod gets another answer: %+v", again)
		}
	})
}

// post gives the answer, or nil for an HTTP error.
func post(t *testing.T, h http.Handler, body []byte) *admissionv1.AdmissionResponse {
	r := httptest.NewRequest(http.MethodPost, Path, bytes.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	if w.Code != http.StatusOK {
		if w.Code < 400 || w.Code >= 500 {
			t.Errorf("HTTP status %d: %s", w.Code, w.Body)
		}
		return nil
	}
	var out admissionv1.AdmissionReview
	if err := json.Unmarshal(w.Body.Bytes(), &out); err != nil || out.Response == nil {
		t.Fatalf("answer %q: %v", w.Body, err)
	}
	if !out.Response.Allowed && (out.Response.Result == nil || out.Response.Result.Message == "" || out.Response.Result.Code >= 500) {
		t.Errorf("denied without a message, or by a panic: %+v", out.Response)
	}
	return out.Response
}

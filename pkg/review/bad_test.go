package review_test

import (
	"bytes"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/meshvirt/meshvirt/pkg/review"
	"github.com/meshvirt/meshvirt/test/corpus"
)

// podOf reads a review and its pod.
func podOf(body []byte) (*corev1.Pod, error) {
	req, err := review.Read(body)
	if err != nil {
		return nil, err
	}
	return req.Pod()
}

// What is no pod, and what is no JSON, is refused by the name of the field, with what is wanted there.
func TestBadFieldsAreNamed(t *testing.T) {
	pod := func(spec string) []byte {
		return corpus.Review([]byte(`{"metadata":{"name":"a"},"spec":{"containers":[{"name":"a"` + spec + `}]}}`))
	}
	deep := strings.Repeat("[", 20_000) + strings.Repeat("]", 20_000)
	for name, c := range map[string]struct {
		body []byte
		want string
	}{
		"an array for the pod":      {corpus.Review([]byte(`[]`)), "request.object is no pod: request.object is an array, want an object"},
		"a string for the pod":      {corpus.Review([]byte(`"x"`)), "request.object is a string, want an object"},
		"a string for containers":   {corpus.Review([]byte(`{"spec":{"containers":"none"}}`)), "request.object.spec.containers is a string, want an array"},
		"a number for a name":       {corpus.Review([]byte(`{"metadata":{"name":7}}`)), "request.object.metadata.name is a number, want a string"},
		"a number for a label":      {corpus.Review([]byte(`{"metadata":{"labels":{"a":1}}}`)), "request.object.metadata.labels.a is a number, want a string"},
		"an object for an argument": {pod(`,"args":["a",{}]`), "request.object.spec.containers[0].args[1] is an object, want a string"},
		"a string for a flag":       {corpus.Review([]byte(`{"spec":{"hostNetwork":"yes"}}`)), "request.object.spec.hostNetwork is a string, want true or false"},
		"a port out of range":       {pod(`,"ports":[{"containerPort":4294967296}]`), "request.object.spec.containers[0].ports[0].containerPort is 4294967296, want an integer of 32 bits"},
		"a port that is no integer": {pod(`,"ports":[{"containerPort":80.5}]`), "containerPort is 80.5, want an integer of 32 bits"},
		"a period out of range":     {corpus.Review([]byte(`{"spec":{"terminationGracePeriodSeconds":1e99}}`)), "request.object.spec.terminationGracePeriodSeconds is 1e99, want an integer of 64 bits"},
		"a bad amount":              {pod(`,"resources":{"limits":{"cpu":"x","memory":"1"}}`), "request.object.spec.containers[0].resources.limits: cpu is \"x\""},
		"a key twice":               {corpus.Review([]byte(`{"metadata":{"name":"a","name":"b"}}`)), `duplicate object member name "name" within "/request/object/metadata"`},
		"a key twice, unread":       {pod(`,"tty":true,"tty":true`), `duplicate object member name "tty" within "/request/object/spec/containers/0"`},
		"two objects":               {bytes.Replace(corpus.Review(corpus.JSON(t, corpus.Sidecar)), []byte(`"oldObject"`), []byte(`"object"`), 1), `duplicate object member name "object" within "/request"`},
		"bad UTF-8":                 {corpus.Review([]byte("{\"metadata\":{\"name\":\"\xff\"}}")), `invalid UTF-8 within "/request/object/metadata/name"`},
		"bad UTF-8, unread":         {corpus.Review([]byte("{\"metadata\":{\"x\":\"\xff\"}}")), `invalid UTF-8 within "/request/object/metadata/x"`},
		"deep":                      {corpus.Review([]byte(`{"metadata":{"x":` + deep + `}}`)), "exceeded max depth"},
		"data after it":             {append(corpus.Review(corpus.JSON(t, corpus.Sidecar)), "{}"...), "after top-level value"},
		"a request that is none":    {[]byte(`{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":7}`), `"/request"`},
		"no request at all":         {[]byte(`{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1"}`), "request is null, want an admission request"},
		"version 2":                 {bytes.Replace(corpus.Review(corpus.JSON(t, corpus.Sidecar)), []byte("admission.k8s.io/v1"), []byte("admission.k8s.io/v2"), 1), `got "AdmissionReview" of "admission.k8s.io/v2", want AdmissionReview of admission.k8s.io/v1`},
		"an empty object":           {bytes.Replace(corpus.Review([]byte(`null`)), []byte(`"object":null,`), nil, 1), "request.object is empty, want a pod"},
	} {
		t.Run(name, func(t *testing.T) {
			if pod, err := podOf(c.body); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("pod %+v, error %v; want %q in it", pod, err, c.want)
			}
		})
	}
}

// Truncated at any place a review is refused, and never read by half.
func TestTruncated(t *testing.T) {
	body := corpus.Review(corpus.JSON(t, corpus.Sidecar))
	for n := 0; n < len(body); n += 97 {
		if req, err := review.Read(body[:n]); err == nil {
			t.Fatalf("%d of %d bytes are a review: %+v", n, len(body), req)
		}
	}
}

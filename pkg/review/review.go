// Package review reads AdmissionReviews of a pod's creation: each once, and of the pod only what package mutate looks at.
// That is half of what an admission costs.
package review

import (
	"errors"
	"fmt"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// TypeMeta is what is read; the chart's configuration says the same to the API server.
var TypeMeta = metav1.TypeMeta{APIVersion: "admission.k8s.io/v1", Kind: "AdmissionReview"}

// Request is the part of an AdmissionReview's request that is read.
type Request struct {
	UID         types.UID               `json:"uid"`
	Kind        metav1.GroupVersionKind `json:"kind"`
	SubResource string                  `json:"subResource"`
	Namespace   string                  `json:"namespace"`
	Name        string                  `json:"name"`
	Operation   admissionv1.Operation   `json:"operation"`
	DryRun      bool                    `json:"dryRun"`
	Object      object                  `json:"object"` // see Pod

	review []byte // as it came
}

// review is admissionv1.AdmissionReview with its request cut down to Request.
type review struct {
	APIVersion string   `json:"apiVersion"`
	Kind       string   `json:"kind"`
	Request    *Request `json:"request"`
}

// Read takes the request out of a review. The request's Pod may look at the body again, which is to stay as it is until then.
// An error says what is wanted in place of what came; a pod that is none is Pod's to refuse, if it is asked for.
func Read(body []byte) (*Request, error) {
	var in review
	if err := unmarshal(body, &in); err != nil {
		return nil, fmt.Errorf("want an AdmissionReview in JSON: %w", err)
	}
	switch {
	case in.APIVersion != TypeMeta.APIVersion || in.Kind != TypeMeta.Kind:
		return nil, fmt.Errorf("got %q of %q, want %s of %s", in.Kind, in.APIVersion, TypeMeta.Kind, TypeMeta.APIVersion)
	case in.Request == nil:
		return nil, errors.New("request is null, want an admission request")
	case in.Request.UID == "" || in.Request.Operation == "":
		return nil, errors.New("request.uid or request.operation is empty, want both")
	}
	in.Request.review = body
	return in.Request, nil
}

// unmarshal reads a review.
func unmarshal(body []byte, in *review) error {
	err := json.Unmarshal(body, in)
	semantic := (*json.SemanticError)(nil)
	if !errors.As(err, &semantic) || !jsontext.Pointer("/request/object").Contains(semantic.JSONPointer) {
		return err
	}
	*in = review{}
	if err := json.Unmarshal(body, in, skipObject); err != nil {
		return err
	}
	in.Request.Object.err = err
	return nil
}

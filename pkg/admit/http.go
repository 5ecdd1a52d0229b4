package admit

import (
	"bytes"
	"fmt"
	"io"
	"mime"
	"net/http"
	"sync"

	"github.com/meshvirt/meshvirt/pkg/review"
)

// maxReview is the largest body that is read, in bytes. A pod in etcd is at most 1.5 MiB by default,
// a request to the API server at most 3 MiB; a review holds the pod once and is little larger.
const maxReview = 7 << 20

// ServeHTTP answers one review. What is no review is answered by an HTTP error, which the API server
// reports as a call that failed; everything else by HTTP 200 and a response.
//
// It stands in for controller-runtime's admission.Webhook, whose decoder reads the review twice and
// takes four fifths of a cheap handler's time.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	buffer := buffers.Get().(*bytes.Buffer)
	defer release(buffer)
	req, code, err := read(r, buffer)
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
// The review stays in the buffer.
func read(r *http.Request, buffer *bytes.Buffer) (*review.Request, int, error) {
	if t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || t != "application/json" {
		return nil, http.StatusUnsupportedMediaType, fmt.Errorf("Content-Type is %q, want application/json", r.Header.Get("Content-Type"))
	}
	if r.ContentLength > maxReview {
		return nil, http.StatusRequestEntityTooLarge, errTooLarge
	}
	if r.ContentLength > 0 {
		buffer.Grow(int(r.ContentLength) + bytes.MinRead) // or it would grow to find the end
	}
	if n, err := buffer.ReadFrom(io.LimitReader(r.Body, maxReview+1)); err != nil {
		return nil, http.StatusBadRequest, fmt.Errorf("read the review: %w", err)
	} else if n > maxReview {
		return nil, http.StatusRequestEntityTooLarge, errTooLarge
	}
	req, err := review.Read(buffer.Bytes())
	if err != nil {
		return nil, http.StatusBadRequest, err
	}
	return req, 0, nil
}

var errTooLarge = fmt.Errorf("the review has more than %d bytes", maxReview)

// buffers are for bodies: what is decoded holds no part of them.
var buffers = sync.Pool{New: func() any { return &bytes.Buffer{} }}

// release keeps a buffer for the next review, unless it is much larger than most.
func release(b *bytes.Buffer) {
	if b.Reset(); b.Cap() <= 256<<10 {
		buffers.Put(b)
	}
}

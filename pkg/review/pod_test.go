package review_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"testing"

	jsonpatch "github.com/evanphx/json-patch/v5"
	corev1 "k8s.io/api/core/v1"

	"github.com/meshvirt/meshvirt/pkg/mutate"
	"github.com/meshvirt/meshvirt/pkg/patch"
	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/templates"
	"github.com/meshvirt/meshvirt/test/corpus"
)

// What is decoded is enough: every recorded pod, and every one that was adapted before, comes out as if
// encoding/json had read the whole.
func TestDecodedPodIsAdaptedAlike(t *testing.T) {
	pods := 0
	for _, file := range slices.Concat(corpus.Pods(t, "pods"), corpus.Pods(t, "pods-other")) {
		raw := corpus.JSON(t, file)
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

// adaptedAlike compares, and gives what the patch makes of the pod.
func adaptedAlike(t *testing.T, name string, raw []byte, mode plan.Mode) []byte {
	t.Helper()
	parts, err := podOf(corpus.Review(raw))
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	whole := &corev1.Pod{}
	if err := json.Unmarshal(raw, whole); err != nil {
		t.Fatal(err)
	}
	var patches, reports [2][]byte
	for i, pod := range []*corev1.Pod{parts, whole} {
		c := mutate.Config{Image: templates.Image{Name: "example.com/dataplane:test"}, DefaultMode: mode}
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

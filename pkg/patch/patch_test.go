package patch_test

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"gomodules.xyz/jsonpatch/v2"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshvirt/meshvirt/pkg/annotations"
	"github.com/meshvirt/meshvirt/pkg/kubevirt"
	"github.com/meshvirt/meshvirt/pkg/mutate"
	"github.com/meshvirt/meshvirt/pkg/patch"
	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/record"
	"github.com/meshvirt/meshvirt/pkg/templates"
	"github.com/meshvirt/meshvirt/test/corpus"
)

var config = mutate.Config{Image: templates.Image{Name: "example.com/dataplane:test"}}

func adapted(t *testing.T, pod *corev1.Pod) *corev1.Pod {
	t.Helper()
	out, report, errs := mutate.Apply(pod, mutate.Facts{}, config)
	if len(errs) > 0 || report.Mode == plan.Off {
		t.Fatalf("report %+v, errors %v", report, errs)
	}
	return out
}

func marshal(t *testing.T, pod *corev1.Pod) []byte {
	t.Helper()
	b, err := json.Marshal(pod)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// minimal are the operations that a patch may have: annotations by key, whole containers of ours, and the
// list of a mesh's container that holds its flags. Anything deeper would go by an index into what others own.
var minimal = regexp.MustCompile(`^((add|replace|remove) /metadata/annotations/[^/]+|(add|remove|replace) /spec/initContainers/[0-9]+|replace /spec/initContainers/[0-9]+/(args|command)|add /spec/volumes/-)$`)

// notMinimal says what is wrong with a patch of before; "" if it is minimal.
func notMinimal(before *corev1.Pod, ops []jsonpatch.Operation) string {
	seen, added := map[string]bool{}, map[string]bool{}
	for _, op := range ops {
		if s := op.Operation + " " + op.Path; !minimal.MatchString(s) || seen[op.Path] {
			return s
		}
		seen[op.Path] = true
		if v, ok := op.Value.(corev1.Volume); ok && !templates.IsNoToken(v) {
			return fmt.Sprintf("%s %s of %q", op.Operation, op.Path, v.Name)
		}
		if !strings.HasPrefix(op.Path, "/spec/initContainers/") || strings.HasSuffix(op.Path, "s") {
			continue
		}
		c, ok := op.Value.(corev1.Container)
		if !ok || !templates.Ours(c.Name) || added[c.Name] || op.Operation != "add" || templates.Index(before.Spec.InitContainers, c.Name) >= 0 {
			return fmt.Sprintf("%s %s of %q", op.Operation, op.Path, c.Name)
		}
		added[c.Name] = true
	}
	return ""
}

// The patch of every recorded pod, in every mode, is minimal: one `add` for each container of ours, whatever
// stands behind it.
func TestPatchIsMinimal(t *testing.T) {
	patches := 0
	for _, file := range corpus.Pods(t, "pods") {
		vmi, err := kubevirt.ParseVMI(corpus.VMI(t, file))
		if err != nil {
			t.Fatal(err)
		}
		for _, mode := range plan.Modes {
			pod := corpus.Pod(t, file)
			if mode != plan.Auto {
				pod.Annotations[annotations.Mode] = string(mode)
			}
			out, _, _ := mutate.Apply(pod, mutate.Facts{VMI: vmi}, config)
			ops := patch.Between(pod, out)
			if len(ops) > 0 {
				patches++
			}
			if bad := notMinimal(pod, ops); bad != "" {
				t.Errorf("%s, mode %s: %s", file, mode, bad)
			}
		}
	}
	if patches < 100 {
		t.Errorf("%d patches, want those of the corpus", patches)
	}
}

// The sibling: what a diff of the two pods gives, as controller-runtime makes one, is seen not to be.
func TestDiffIsNotMinimal(t *testing.T) {
	pod := corpus.Pod(t, corpus.Sidecar)
	out := adapted(t, pod)
	diff, err := jsonpatch.CreatePatch(marshal(t, pod), marshal(t, out))
	if err != nil {
		t.Fatal(err)
	}
	inList := slices.ContainsFunc(diff, func(op jsonpatch.Operation) bool { return strings.HasPrefix(op.Path, "/spec/initContainers/") })
	if bad := notMinimal(pod, diff); bad == "" || !inList {
		t.Errorf("a diff of %d operations counts as minimal", len(diff))
	}
}

// Our volume comes and goes whatever other volumes the pod has; none if no token is mounted.
func TestVolume(t *testing.T) {
	no, yes := false, true
	for name, c := range map[string]struct {
		change     func(*corev1.PodSpec)
		want, undo string
	}{
		"beside others":      {func(*corev1.PodSpec) {}, "add /spec/volumes/-", "remove /spec/volumes/18"},
		"the only one":       {func(p *corev1.PodSpec) { p.Volumes = nil }, "add /spec/volumes", "remove /spec/volumes"},
		"mounts asked for":   {func(p *corev1.PodSpec) { p.AutomountServiceAccountToken = &yes }, "add /spec/volumes/-", "remove /spec/volumes/18"},
		"nothing is mounted": {func(p *corev1.PodSpec) { p.AutomountServiceAccountToken = &no }, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			pod := corpus.Pod(t, corpus.Sidecar)
			c.change(&pod.Spec)
			out := adapted(t, pod)
			i := templates.Index(out.Spec.InitContainers, templates.RulesName)
			if _, added := templates.WithoutToken(out.Spec.InitContainers[i]); added != (c.want == "") {
				t.Errorf("%s has a mount in the token's place: %t", templates.RulesName, !added)
			}
			undone, _, err := record.Undo(out)
			if err != nil {
				t.Fatal(err)
			}
			for want, ops := range map[string][]jsonpatch.Operation{c.want: patch.Between(pod, out), c.undo: patch.Between(out, undone)} {
				var got string
				for _, op := range ops {
					if strings.HasPrefix(op.Path, "/spec/volumes") {
						got += op.Operation + " " + op.Path
					}
				}
				if got != want {
					t.Errorf("patch of volumes %q, want %q", got, want)
				}
			}
		})
	}
}

func TestKeysAreEscaped(t *testing.T) {
	before := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{"a/b~c": "1", "x": "1"}}}
	after := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{"a/b~c": "2", "y/z": "1"}}}
	var got []string
	for _, op := range patch.Between(before, after) {
		got = append(got, op.Operation+" "+op.Path)
	}
	if want := []string{"remove /metadata/annotations/x", "replace /metadata/annotations/a~1b~0c", "add /metadata/annotations/y~1z"}; !slices.Equal(got, want) {
		t.Errorf("patch %q, want %q", got, want)
	}
}

package mutate

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"gomodules.xyz/jsonpatch/v2"
	corev1 "k8s.io/api/core/v1"

	"github.com/meshvirt/meshvirt/pkg/annotations"
	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/templates"
)

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
		if v, ok := op.Value.(corev1.Volume); ok && !noToken(v) {
			return fmt.Sprintf("%s %s of %q", op.Operation, op.Path, v.Name)
		}
		if !strings.HasPrefix(op.Path, "/spec/initContainers/") || strings.HasSuffix(op.Path, "s") {
			continue
		}
		c, ok := op.Value.(corev1.Container)
		if !ok || !ours(c.Name) || added[c.Name] || op.Operation != "add" || container(before.Spec.InitContainers, c.Name) >= 0 {
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
	for _, file := range corpusPods(t) {
		in := []byte(readYAML(t, file))
		for _, mode := range plan.Modes {
			var pod corev1.Pod
			if err := json.Unmarshal(in, &pod); err != nil {
				t.Fatal(err)
			}
			if mode != plan.Auto {
				pod.Annotations[annotations.Mode] = string(mode)
			}
			out, _, _ := Apply(&pod, Facts{VMI: readVMI(t, filepath.Join(filepath.Dir(file), "vmi.yaml"))}, testConfig)
			ops := Patch(&pod, out)
			if len(ops) > 0 {
				patches++
			}
			if bad := notMinimal(&pod, ops); bad != "" {
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
	pod := recorded(t)
	out, _, errs := Apply(pod, Facts{}, testConfig)
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	diff, err := jsonpatch.CreatePatch(must(json.Marshal(pod)), must(json.Marshal(out)))
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
			pod := recorded(t)
			c.change(&pod.Spec)
			out := apply(t, pod)
			i := container(out.Spec.InitContainers, templates.RulesName)
			if _, added := templates.WithoutToken(out.Spec.InitContainers[i]); added != (c.want == "") {
				t.Errorf("%s has a mount in the token's place: %t", templates.RulesName, !added)
			}
			undone, _, err := Undo(out)
			if err != nil {
				t.Fatal(err)
			}
			for want, ops := range map[string][]jsonpatch.Operation{c.want: Patch(pod, out), c.undo: Patch(out, undone)} {
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

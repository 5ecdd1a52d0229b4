package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestUninjectGivesBack(t *testing.T) {
	user := strings.Replace(readFile(t, native), "  annotations:\n", "  annotations:\n    meshvirt.io/mode: native\n", 1)
	future := strings.Replace(readFile(t, native), "spec:\n", "spec:\n  fieldOfTheFuture: {big: 9007199254740993}\n", 1)
	for name, in := range map[string]string{
		"a pod":                     readFile(t, native),
		"a mode of the user's":      user,
		"no field is lost":          future,
		"several documents":         "kind: Service\n---\n" + user + "---\n" + future,
		"a list, with other things": `{"kind":"List","items":[{"kind":"ConfigMap"},{"kind":"List","items":[` + asJSONText(t, user) + `]}]}`,
	} {
		for _, args := range [][]string{nil, {"--mode", "nat-proxy"}, {"--mode", "native"}} {
			t.Run(name+" "+strings.Join(args, "="), func(t *testing.T) {
				plain := meshvirt(in, "uninject", "-f", "-") // the input in the program's own layout
				adapted := meshvirt(in, append([]string{"inject", "-f", "-"}, args...)...)
				if plain.err != nil || adapted.err != nil || adapted.out == plain.out {
					t.Fatalf("errors %v, %v; adapted: %t", plain.err, adapted.err, adapted.out != plain.out)
				}
				again := meshvirt(adapted.out, append([]string{"inject", "-f", "-"}, args...)...)
				got := meshvirt(again.out, "uninject", "-f", "-")
				if got.err != nil || got.errOut != "" {
					t.Errorf("error %v, messages %s", got.err, got.errOut)
				}
				if strings.HasPrefix(in, "{") { // a patch may change the order of keys in JSON
					if diff := cmp.Diff(toAny(t, plain.out), toAny(t, got.out)); diff != "" {
						t.Errorf("(-before +after)\n%s", diff)
					}
				} else if got.out != plain.out {
					t.Errorf("(-before +after)\n%s", cmp.Diff(plain.out, got.out))
				}
			})
		}
	}
}

func TestUninjectNotes(t *testing.T) {
	in := readFile(t, native)
	r := meshvirt(in, "uninject", "-f", "-")
	if r.err != nil || !strings.Contains(r.errOut, "pod virt-launcher-vm-web- was not adapted by MeshVirt") {
		t.Errorf("error %v, messages %q", r.err, r.errOut)
	}
	if diff := cmp.Diff(toAny(t, in), toAny(t, r.out)); diff != "" {
		t.Errorf("(-in +out)\n%s", diff)
	}

	byHand := without(t, meshvirt(in, "inject", "-f", "-").out, "    meshvirt.io/undo:")
	r = meshvirt(byHand, "uninject", "-f", "-")
	if r.err != nil || !strings.Contains(r.errOut, "warning: pod virt-launcher-vm-web-: annotation meshvirt.io/undo is missing") || strings.Contains(r.out, "meshvirt") {
		t.Errorf("error %v, messages %q", r.err, r.errOut)
	}
	if diff := cmp.Diff(toAny(t, in), toAny(t, r.out)); diff != "" {
		t.Errorf("(-in +out)\n%s", diff)
	}
}

// without takes out the one line that begins so.
func without(t *testing.T, text, begin string) string {
	t.Helper()
	head, rest, ok := strings.Cut(text, "\n"+begin)
	_, tail, more := strings.Cut(rest, "\n")
	if !ok || !more {
		t.Fatalf("no line %q", begin)
	}
	return head + "\n" + tail
}

func TestUninjectErrors(t *testing.T) {
	adapted := meshvirt("", "inject", "-f", native).out
	tampered := strings.Replace(adapted, `meshvirt.io/undo: '{`, `meshvirt.io/undo: '{"x":1,`, 1)
	gone := strings.Replace(adapted, `"initContainers":{"istio-init"`, `"initContainers":{"other-init"`, 1)
	for name, c := range map[string]struct {
		in   string
		want []string
	}{
		"tampered":              {tampered, []string{"document 1: pod virt-launcher-vm-web-", "metadata.annotations[meshvirt.io/undo]", `unknown field "x"`, "want what MeshVirt wrote there"}},
		"of another pod":        {gone, []string{"the pod has no init container other-init"}},
		"every bad document":    {tampered + "---\n" + adapted + "---\n" + gone, []string{"document 1", "document 3"}},
		"nothing":               {"", []string{"want at least one"}},
		"no object":             {"just text\n", []string{"want a Kubernetes object"}},
		"containers of no type": {"kind: Pod\nspec: {containers: none}\n", []string{"read pod"}},
	} {
		t.Run(name, func(t *testing.T) {
			r := meshvirt(c.in, "uninject", "-f", "-")
			if r.err == nil || r.out != "" {
				t.Fatalf("error %v, output %q; want an error and no output", r.err, r.out)
			}
			for _, want := range c.want {
				if !strings.Contains(r.err.Error(), want) {
					t.Errorf("error %v, want %q in it", r.err, want)
				}
			}
		})
	}
}

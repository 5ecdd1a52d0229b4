package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"github.com/meshvirt/meshvirt/pkg/plan"
)

const (
	pods   = "../../test/corpus/pods/v1.9.0/"
	native = pods + "masquerade-istio-ports/injected-1.31.0-rc.0-native.yaml"
)

type result struct {
	out, errOut string
	err         error
}

func meshvirt(in string, args ...string) result {
	var out, errOut bytes.Buffer
	err := run(args, strings.NewReader(in), &out, &errOut)
	return result{out.String(), errOut.String(), err}
}

func readFile(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func toAny(t *testing.T, y string) (v any) {
	t.Helper()
	if err := yaml.Unmarshal([]byte(y), &v); err != nil {
		t.Fatal(err)
	}
	return v
}

func initContainers(t *testing.T, y string) string {
	t.Helper()
	var pod struct {
		Spec struct {
			InitContainers []struct{ Name string }
		}
	}
	if err := yaml.Unmarshal([]byte(y), &pod); err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, c := range pod.Spec.InitContainers {
		names = append(names, c.Name)
	}
	return strings.Join(names, " ")
}

func TestInject(t *testing.T) {
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"auto":      {nil, "istio-init meshvirt-rules istio-proxy guest-console-log volumecontainerdisk"},
		"nat-proxy": {[]string{"--mode", "nat-proxy"}, "istio-init meshvirt-rules meshvirt-proxy istio-proxy guest-console-log volumecontainerdisk"},
		"off":       {[]string{"--mode=off"}, "istio-init istio-proxy guest-console-log volumecontainerdisk"},
	} {
		t.Run(name, func(t *testing.T) {
			r := meshvirt("", append([]string{"inject", "-f", native}, c.args...)...)
			if r.err != nil {
				t.Fatal(r.err)
			}
			if got := initContainers(t, r.out); got != c.want {
				t.Errorf("init containers %s, want %s", got, c.want)
			}
			again := meshvirt(r.out, append([]string{"inject", "-f", "-"}, c.args...)...)
			if again.err != nil || again.out != r.out {
				t.Errorf("injected twice (-once +twice), error %v\n%s", again.err, cmp.Diff(r.out, again.out))
			}
		})
	}
}

func TestInjectKeepsWhatItDoesNotKnow(t *testing.T) {
	service := "apiVersion: v1\nkind: Service\nmetadata:\n  name: web\nspec:\n  ports:\n  - port: 80\n"
	pod := strings.Replace(readFile(t, native), "spec:\n", "spec:\n  fieldOfTheFuture: {big: 9007199254740993, x: 1.50}\n", 1)
	r := meshvirt("# a comment\n---\n"+service+"---\n"+pod+"---\n", "inject", "-f", "-")
	if r.err != nil {
		t.Fatal(r.err)
	}
	docs := strings.Split(r.out, "---\n")
	if len(docs) != 2 || docs[0] != service {
		t.Fatalf("%d documents, want the service as it was and the pod:\n%s", len(docs), r.out[:200])
	}
	if !strings.Contains(docs[1], "big: 9007199254740993") || !strings.Contains(docs[1], "meshvirt-rules") {
		t.Errorf("the unknown field or our container is missing:\n%s", docs[1])
	}
}

func TestInjectJSONAndLists(t *testing.T) {
	pod, err := yaml.YAMLToJSON([]byte(readFile(t, native)))
	if err != nil {
		t.Fatal(err)
	}
	list := `{"apiVersion":"v1","kind":"List","metadata":{"resourceVersion":""},"items":[` + string(pod) + `,{"apiVersion":"v1","kind":"ConfigMap"}]}`
	r := meshvirt(string(pod)+list, "inject", "-f", "-")
	if r.err != nil {
		t.Fatal(r.err)
	}
	d := json.NewDecoder(strings.NewReader(r.out))
	var one, two map[string]any
	if err := d.Decode(&one); err != nil {
		t.Fatal(err)
	}
	if err := d.Decode(&two); err != nil {
		t.Fatal(err)
	}
	items := two["items"].([]any)
	if diff := cmp.Diff(one, items[0]); diff != "" || len(items) != 2 || !strings.Contains(r.out, "meshvirt-rules") {
		t.Errorf("the pod in the list differs from the single one\n%s", diff)
	}
}

func TestInjectWithVMI(t *testing.T) {
	dir := pods + "masquerade-dualstack-cidrs/"
	r := meshvirt("", "inject", "-f", dir+"injected-1.31.0-rc.0-native.yaml", "--vmi", dir+"vmi.yaml")
	if r.err != nil || !strings.Contains(r.out, `"ipv4":"10.11.12.2"`) {
		t.Errorf("error %v; the plan lacks the guest's address in the VMI's network", r.err)
	}
}

func TestInjectLeavesOtherPodsAlone(t *testing.T) {
	file := pods + "bridge-istio/injected-1.31.0-rc.0-native.yaml"
	r := meshvirt("", "inject", "-f", file)
	if r.err != nil || !strings.Contains(r.errOut, "is left alone: NoVirtualInterface") {
		t.Errorf("error %v, messages %s", r.err, r.errOut)
	}
	if diff := cmp.Diff(toAny(t, readFile(t, file)), toAny(t, r.out)); diff != "" {
		t.Errorf("(-in +out)\n%s", diff)
	}
}

func TestInjectErrors(t *testing.T) {
	bad := strings.Replace(readFile(t, native), "  annotations:\n", "  annotations:\n    meshvirt.io/mode: teleport\n    meshvirt.io/exclude-inbound-ports: \"0\"\n", 1)
	notVMI := filepath.Join(t.TempDir(), "pod.yaml")
	if err := os.WriteFile(notVMI, []byte("kind: Pod\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		in   string
		args []string
		want []string
	}{
		"every bad annotation":  {bad, nil, []string{"document 1: pod virt-launcher-vm-web-", `annotations[meshvirt.io/mode]: Invalid value: "teleport"`, "exclude-inbound-ports"}},
		"every bad document":    {bad + "---\n" + bad, nil, []string{"document 1", "document 2"}},
		"unknown mode":          {"", []string{"--mode", "teleport"}, []string{`--mode is "teleport", want one of`}},
		"no file":               {"", []string{"-f", "/does/not/exist"}, []string{"-f: open /does/not/exist"}},
		"no VMI":                {"", []string{"--vmi", notVMI}, []string{"--vmi", `kind is "Pod", want VirtualMachineInstance`}},
		"nothing":               {"# nothing\n", nil, []string{"want at least one"}},
		"no YAML":               {"a: [\n", nil, []string{"document 1"}},
		"no object":             {"just text\n", nil, []string{"want a Kubernetes object"}},
		"no kind":               {"a: 1\n", nil, []string{"kind is missing"}},
		"the same key twice":    {"kind: Pod\nkind: Pod\n", nil, []string{"already set"}},
		"containers of no type": {"kind: Pod\nspec: {containers: none}\n", nil, []string{"read pod"}},
		"truncated JSON":        {`{"kind":"Pod"`, nil, []string{"document 1"}},
	} {
		t.Run(name, func(t *testing.T) {
			args := append([]string{"inject", "-f", "-"}, c.args...)
			r := meshvirt(c.in, args...)
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

func TestVersion(t *testing.T) {
	if r := meshvirt("", "version"); r.err != nil || r.out != plan.Release+"\n" {
		t.Errorf("%q, error %v", r.out, r.err)
	}
}

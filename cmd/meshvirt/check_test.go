package main

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"
)

const virtualMachine = `
apiVersion: kubevirt.io/v1
kind: VirtualMachine
metadata: {name: web, namespace: vms}
spec:
  template:
    metadata:
      annotations: {"meshvirt.io/mode": "MODE", "meshvirt.io/KEY": "22"}
`

func virtual(mode, key string) string {
	return strings.NewReplacer("MODE", mode, "KEY", key).Replace(virtualMachine)
}

func TestCheckManifests(t *testing.T) {
	for name, c := range map[string]struct {
		in   string
		args []string
		want string // the output
		err  string // in the error; empty: none
	}{
		"well": {virtual("rules", "exclude-inbound-ports"), nil,
			"All is well: 1 virtual machine (1 not running) in the manifests.\n", ""},
		"errors": {virtual("nat", "exclude-inbound-ports") + "---\nkind: ConfigMap\n", nil,
			"error    VirtualMachine vms/web: spec.template.metadata.annotations[meshvirt.io/mode]: Invalid value: \"nat\": " +
				"want one of auto, native, rules, nat-proxy, tproxy, ambient, process, off [InvalidAnnotation]\n" +
				"         Set such a value, or remove the annotation (docs/annotations.md); until then the pod is refused.\n\n" +
				"1 error, 0 warnings. Looked at: 1 virtual machine (1 not running) in the manifests.\n", "found 1 error"},
		"warnings":       {virtual("rules", "ports"), nil, warningText, ""},
		"warnings count": {virtual("rules", "ports"), []string{"--fail-on", "warning"}, warningText, "found 1 warning"},
		"the same advice once": {virtual("nat", "exclude-inbound-ports") + "---" + strings.Replace(virtual("nat", "exclude-inbound-ports"), "web", "db", 1), []string{"--fail-on=error"},
			strings.Repeat("error    VirtualMachine vms/web: spec.template.metadata.annotations[meshvirt.io/mode]: Invalid value: \"nat\": "+
				"want one of auto, native, rules, nat-proxy, tproxy, ambient, process, off [InvalidAnnotation]\n", 2) +
				"         Set such a value, or remove the annotation (docs/annotations.md); until then the pod is refused.\n\n" +
				"2 errors, 0 warnings. Looked at: 2 virtual machines (2 not running) in the manifests.\n", "found 2 errors"},
	} {
		t.Run(name, func(t *testing.T) {
			r := meshvirt(c.in, append([]string{"check", "-f", "-"}, c.args...)...)
			if (r.err == nil) != (c.err == "") || r.err != nil && r.err.Error() != c.err {
				t.Errorf("error %v, want %q", r.err, c.err)
			}
			got := strings.Replace(r.out, "vms/db", "vms/web", 1)
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

const warningText = "warning  VirtualMachine vms/web: annotation meshvirt.io/ports is unknown and has no effect, known are " +
	"meshvirt.io/mode, meshvirt.io/interfaces, meshvirt.io/guest-addresses, meshvirt.io/exclude-outbound-cidrs, " +
	"meshvirt.io/exclude-outbound-ports, meshvirt.io/include-outbound-cidrs, meshvirt.io/exclude-inbound-ports, " +
	"meshvirt.io/watch, meshvirt.io/inject [NoEffect]\n" +
	"         Correct the key, or remove it.\n\n" +
	"0 errors, 1 warning. Looked at: 1 virtual machine (1 not running) in the manifests.\n"

func TestCheckForms(t *testing.T) {
	var y, j report
	in := virtual("nat", "ports")
	if err := yaml.UnmarshalStrict([]byte(meshvirt(in, "check", "-f", "-", "-o", "yaml").out), &y); err != nil {
		t.Fatal(err)
	}
	r := meshvirt(in, "check", "-f", "-", "-o", "json")
	if err := json.Unmarshal([]byte(r.out), &j); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(y, j); diff != "" || r.err == nil {
		t.Errorf("error %v (-yaml +json)\n%s", r.err, diff)
	}
	if j.Errors != 1 || j.Warnings != 1 || len(j.Findings) != 2 || j.Findings[0].Code != "InvalidAnnotation" || j.Machines["not running"] != 1 {
		t.Errorf("%+v", j)
	}
	// Programs read a list, also of nothing.
	if r := meshvirt(virtual("rules", "exclude-inbound-ports"), "check", "-f", "-", "-o", "json"); r.err != nil || !strings.Contains(r.out, `"findings": []`) {
		t.Errorf("error %v, %s", r.err, r.out)
	}
}

func TestCheckErrors(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	silent := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	defer silent.Close()
	for name, c := range map[string]struct {
		in   string
		args []string
		want string
	}{
		"no virtual machine": {"kind: ConfigMap\n", []string{"-f", "-"}, "nothing to check in the manifests"},
		"no YAML":            {"a: [\n", []string{"-f", "-"}, "document 1"},
		"no object":          {"kind: Pod\n---\nkind: Pod\nspec: text\n", []string{"-f", "-"}, "document 2"},
		"two places":         {"", []string{"-f", "-", "-A"}, "[filename all-namespaces namespace]"},
		"a severity":         {"", []string{"--fail-on", "info", "-f", "-"}, "want one of [error warning]"},
		"no kubeconfig":      {"", []string{"--kubeconfig", empty + "-not"}, "no such file"},
		"nothing said":       {"", []string{"--kubeconfig", empty}, "give manifests by -f"},
		"no answer":          {"", []string{"--kubeconfig", empty, "--server", silent.URL, "--request-timeout", "100ms"}, "exceeded"},
		"no cluster":         {"", []string{"--kubeconfig", empty, "--server", "https://127.0.0.1:1"}, "ask the API server at https://127.0.0.1:1 for its version"},
	} {
		t.Run(name, func(t *testing.T) {
			r := meshvirt(c.in, append([]string{"check"}, c.args...)...)
			if r.err == nil || r.out != "" || !strings.Contains(r.err.Error(), c.want) {
				t.Errorf("error %v, output %q, want %q", r.err, r.out, c.want)
			}
		})
	}
}

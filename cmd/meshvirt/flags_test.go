package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"github.com/meshvirt/meshvirt/pkg/plan"
)

func asJSONText(t *testing.T, y string) string {
	t.Helper()
	j, err := yaml.YAMLToJSON([]byte(y))
	if err != nil {
		t.Fatal(err)
	}
	return string(j)
}

func TestOutputForms(t *testing.T) {
	in := readFile(t, native)
	for _, command := range []string{"inject", "uninject"} {
		kept := meshvirt(in, command, "-f", "-")
		for form, other := range map[string]string{"yaml": asJSONText(t, in), "json": in} {
			r := meshvirt(other, command, "-f", "-", "-o", form)
			if r.err != nil || json.Valid([]byte(r.out)) != (form == "json") {
				t.Errorf("%s -o %s: error %v\n%s", command, form, r.err, r.out[:min(len(r.out), 200)])
			}
			if diff := cmp.Diff(toAny(t, kept.out), toAny(t, r.out)); diff != "" {
				t.Errorf("%s -o %s (-kept +got)\n%s", command, form, diff)
			}
		}
	}
	for _, command := range []string{"inject", "uninject", "explain"} {
		if r := meshvirt(in, command, "-f", "-", "-o", "xml"); r.err == nil || r.out != "" || !strings.Contains(r.err.Error(), "want one of [yaml json]") {
			t.Errorf("%s -o xml: error %v", command, r.err)
		}
		want := map[bool]string{true: "or manifests (-f FILE)", false: `"filename" not set`}[command == "explain"]
		if r := meshvirt(in, command); r.err == nil || !strings.Contains(r.err.Error(), want) {
			t.Errorf("%s without -f: error %v", command, r.err)
		}
	}
}

func TestVersionForms(t *testing.T) {
	var y, j version
	if err := yaml.UnmarshalStrict([]byte(meshvirt("", "version", "-o", "yaml").out), &y); err != nil {
		t.Error(err)
	}
	if err := json.Unmarshal([]byte(meshvirt("", "version", "-o", "json").out), &j); err != nil {
		t.Error(err)
	}
	if y != j || y.Version != plan.Release || !strings.HasSuffix(y.Image, ":"+plan.Release) {
		t.Errorf("yaml %+v, json %+v", y, j)
	}
}

func TestCompletion(t *testing.T) {
	var modes []string
	for _, m := range plan.Modes {
		modes = append(modes, string(m))
	}
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(kubeconfig, []byte("contexts: [{name: two}, {name: one}]"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("KUBECONFIG", kubeconfig)
	files := "yaml\nyml\njson\n:8\n" // of these extensions
	for line, want := range map[string]string{
		"inject --mode ":        strings.Join(modes, "\n") + "\n:4\n",
		"explain --mode ":       strings.Join(modes, "\n") + "\n:4\n",
		"inject -f ":            files,
		"uninject --filename ":  files,
		"explain --vmi ":        files,
		"version -o ":           "yaml\njson\n:4\n",
		"check -f ":             files,
		"check --fail-on ":      "error\nwarning\n:4\n",
		"check -o ":             "yaml\njson\n:4\n",
		"check --context ":      "one\ntwo\n:4\n",
		"check -n ":             ":5\n", // nobody is there to be asked
		"explain ":              ":5\n",
		"explain vmi/":          ":5\n",
		"explain secret/":       ":4\n", // which is nothing to explain
		"explain -f pod.yaml ":  ":4\n",
		"explain web ":          ":4\n",
		"inject ":               ":4\n", // no file names: they belong to -f
		"completion kubectl -":  "--help\n-h\n:4\n",
		"completion kubectl x ": ":4\n",
	} {
		r := meshvirt("", append([]string{"__completeNoDesc"}, strings.Split(line, " ")...)...)
		got := r.out
		if line == "inject " {
			got = got[strings.LastIndex(got, ":"):]
		}
		if r.err != nil || got != want {
			t.Errorf("%q: error %v\n%s", line, r.err, cmp.Diff(want, got))
		}
	}
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		if r := meshvirt("", "completion", shell); r.err != nil || !strings.Contains(r.out, "kubectl-meshvirt") {
			t.Errorf("%s: error %v, the script does not name the program", shell, r.err)
		}
	}
	if r := meshvirt("", "completion", "--help"); !strings.Contains(r.out, "kubectl_complete-meshvirt") {
		t.Errorf("help does not tell about kubectl\n%s", r.out)
	}
}

// The program that kubectl runs asks the plugin. A script stands in for kubectl and says what it was asked.
func TestKubectlCompletion(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"kubectl":                   "#!/bin/sh\nprintf '[%s]' \"$@\"\n",
		"kubectl_complete-meshvirt": meshvirt("", "completion", "kubectl").out,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	c := exec.Command(filepath.Join(dir, "kubectl_complete-meshvirt"), "inject", "--mode", "")
	c.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"))
	out, err := c.CombinedOutput()
	if want := "[meshvirt][__complete][inject][--mode][]"; err != nil || string(out) != want {
		t.Errorf("error %v, %s, want %s", err, out, want)
	}
}

package mesh

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// list is short for argument lists in tables.
func list(s ...string) []string { return s }

// A run is one recorded run of istio-iptables.
type run struct {
	Release string
	Case    string
	Args    []string
	Env     map[string]string
	Rules   []string
	Rules6  int
}

func (r run) String() string { return r.Release + "/" + r.Case }

func (r run) image() string { return "docker.io/istio/proxyv2:" + r.Release }

func (r run) input() Input { return Input{Args: r.Args, Env: r.Env, Image: r.image()} }

// runs are all recorded runs of all releases.
func runs(t testing.TB) []run {
	t.Helper()
	files, err := filepath.Glob("testdata/istio-iptables/*.json")
	if err != nil || len(files) != 7 {
		t.Fatalf("found the runs of %d releases, want 7 (%v)", len(files), err)
	}
	var all []run
	for _, file := range files {
		var some []run
		load(t, file, &some)
		for _, r := range some {
			r.Release = strings.TrimSuffix(filepath.Base(file), ".json")
			all = append(all, r)
		}
	}
	return all
}

// A pod is what concerns redirection in one recorded pod.
type pod struct {
	File, Container, Image string
	Args                   []string
	Env, ProxyEnv          map[string]string
	Annotations            map[string]string
}

func (p pod) input() Input {
	in := Input{Args: p.Args, Env: p.Env, Annotations: p.Annotations, Image: p.Image}
	if p.Container == "istio-validation" {
		in.CNI, in.Env = true, p.ProxyEnv
	}
	return in
}

func pods(t testing.TB) []pod {
	t.Helper()
	var all []pod
	load(t, "testdata/istio-pods.json", &all)
	if len(all) != 32 {
		t.Fatalf("found %d pods, want 32", len(all))
	}
	return all
}

func load(t testing.TB, file string, into any) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(b, into)
	}
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
}

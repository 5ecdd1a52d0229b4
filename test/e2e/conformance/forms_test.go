package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"

	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/test/e2e/netlab"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/istio"
)

// longs are the full names of the flags with which the recorded programs were run.
var longs = map[string]string{
	"-p": "envoy-port", "-z": "inbound-capture-port", "-e": "inbound-tunnel-port", "-u": "proxy-uid", "-g": "proxy-gid",
	"-m": "istio-inbound-interception-mode", "-b": "istio-inbound-ports", "-d": "istio-local-exclude-ports",
	"-i": "istio-service-cidr", "-x": "istio-service-exclude-cidr", "-q": "istio-outbound-ports",
	"-o": "istio-local-outbound-ports-exclude", "-c": "istio-exclude-interfaces", "-k": "kube-virt-interfaces",
}

// TestForms has the recorded arguments in every form that istio-iptables takes: the lab reads the same from
// each, and the pod that the webhook makes of it runs by the same rules and plan.
func TestForms(t *testing.T) {
	c, _ := embedded(t)
	// pairs calls each with the long name and the value of a flag that has one, and gives the rest.
	pairs := func(args []string, each func(name, value string)) (rest []string) {
		for i := 0; i < len(args); i++ {
			if name := longs[args[i]]; name != "" {
				each(name, args[i+1])
				i++
			} else if name, found := strings.CutPrefix(args[i], "--"); found && i+1 < len(args) && !strings.Contains(name, "=") && !strings.HasPrefix(args[i+1], "-") {
				each(name, args[i+1])
				i++
			} else {
				rest = append(rest, args[i])
			}
		}
		return rest
	}
	forms := map[string]func(istio.Case) istio.Case{
		"long": func(k istio.Case) istio.Case {
			var args []string
			rest := pairs(k.Args, func(name, value string) { args = append(args, "--"+name+"="+value) })
			k.Args = append(args, rest...)
			return k
		},
		"long, two elements": func(k istio.Case) istio.Case {
			var args []string
			rest := pairs(k.Args, func(name, value string) { args = append(args, "--"+name, value) })
			k.Args = append(args, rest...)
			return k
		},
		"by variables": func(k istio.Case) istio.Case {
			env := map[string]string{}
			for name, value := range k.Env {
				env[name] = value
			}
			var args []string
			for _, a := range pairs(k.Args, func(name, value string) {
				if value != "" {
					env[strings.ToUpper(strings.ReplaceAll(name, "-", "_"))] = value
				}
			}) {
				if name, found := strings.CutPrefix(a, "--"); found && !strings.Contains(name, "=") {
					env[strings.ToUpper(strings.ReplaceAll(name, "-", "_"))] = "true"
				} else {
					args = append(args, a)
				}
			}
			k.Args, k.Env = args, env
			return k
		},
		"of pilot-agent": func(k istio.Case) istio.Case {
			k.Args = slices.Concat([]string{"/usr/local/bin/pilot-agent", "istio-iptables"}, k.Args, []string{"--log_as_json", "--log_output_level=default:info", "--reconcile"})
			return k
		},
		"attached": func(k istio.Case) istio.Case {
			var args []string
			for i := 0; i < len(k.Args); i++ {
				if longs[k.Args[i]] != "" && k.Args[i+1] != "" {
					args = append(args, k.Args[i]+k.Args[i+1])
					i++
				} else {
					args = append(args, k.Args[i])
				}
			}
			k.Args = args
			return k
		},
	}
	versions, err := c.istio.Versions()
	if err != nil {
		t.Fatal(err)
	}
	tried := 0
	for _, version := range versions {
		cases, err := c.sidecars(version, io.Discard)
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range cases {
			was, want := setupOf(c, k), map[plan.Mode]string{}
			for _, mode := range was.modes() {
				if want[mode], err = outcome(c, was, mode); err != nil {
					t.Fatalf("istio %s, case %s, mode %s: %v", version, k.Name, mode, err)
				}
			}
			for name, form := range forms {
				is := setupOf(c, form(k))
				if diff := cmp.Diff(fmt.Sprintf("%+v", was.told), fmt.Sprintf("%+v", is.told)); diff != "" || is.err != nil {
					t.Errorf("istio %s, case %s, %s: %v (-want +got)\n%s", version, k.Name, name, is.err, diff)
					continue
				}
				for _, mode := range was.modes() {
					got, err := outcome(c, is, mode)
					if diff := cmp.Diff(want[mode], got); diff != "" || err != nil {
						t.Errorf("istio %s, case %s, mode %s, %s: %v (-want +got)\n%s", version, k.Name, mode, name, err, diff)
					}
					tried++
				}
			}
		}
	}
	if tried < 1000 {
		t.Errorf("%d pods were tried, want more than 1000", tried)
	}
}

func setupOf(c corpus, k istio.Case) setup {
	s := setup{binding: "masquerade", mesh: sidecarMesh, version: k.Version, backend: string(netlab.NFT), istio: k, own: exclusions}
	_, s.told, s.err = c.istio.Recorded(k)
	return s
}

// outcome is what runs in a pod as it was admitted: Istio's rules, and MeshVirt's plan.
func outcome(c corpus, s setup, mode plan.Mode) (string, error) {
	pod, err := s.admit(mode)
	if err != nil {
		return "", err
	}
	text := ""
	for _, container := range pod.Spec.InitContainers {
		env := map[string]string{}
		for _, e := range container.Env {
			env[e.Name] = e.Value
		}
		if container.Name == "istio-init" {
			rules, err := c.istio.Adapted(s.istio, slices.Concat(container.Command, container.Args), env)
			if err != nil {
				return "", err
			}
			text += fmt.Sprintf("%+v\n", rules)
		}
		text += env[plan.Env] + "\n"
	}
	return text, nil
}

// TestUnreadable: what cannot be read makes cells that say so, and is not left out.
func TestUnreadable(t *testing.T) {
	c, _ := embedded(t)
	for args, want := range map[string]string{
		`["--teleport"]`:              "unknown flag: --teleport",
		`["-x", "10.0.0.0/40"]`:       `"10.0.0.0/40"`,
		`["-x="]`:                     `"="`,
		`["-b", "80-90"]`:             `-b has "80-90", want a port`,
		`["-p"]`:                      "flag needs an argument",
		`["-p", "x"]`:                 `--envoy-port has "x", want a number`,
		`["-m", "TPROXY", "-t", "7"]`: "--istio-inbound-tproxy-mark=7",
		`["run"]`:                     `argument "run"`,
	} {
		c.istio = istio.Corpus{FS: fstest.MapFS{
			"1.40.0/odd.args":          {Data: []byte(args)},
			"1.40.0/odd.iptables-save": {Data: []byte("*nat\nCOMMIT\n")},
		}}
		all, err := matrix(c, io.Discard)
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(all, func(s setup) bool { return s.mesh == sidecarMesh })
		if i < 0 {
			t.Errorf("%s: no pod", args)
			continue
		}
		rows := (&runner{corpus: c}).pod(t.Context(), lab{all[i], plan.Rules, namespaceGuest}, nil)
		if len(rows) == 0 || rows[0].OK || !strings.Contains(rows[0].Got, want) || !strings.Contains(rows[0].Got, "cannot be represented") {
			t.Errorf("%s: rows %+v, want rows that say %q", args, rows[:min(1, len(rows))], want)
		}
	}
}

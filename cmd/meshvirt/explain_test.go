package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/meshvirt/meshvirt/pkg/decision"
	"github.com/meshvirt/meshvirt/pkg/mutate"
	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/templates"
	"github.com/meshvirt/meshvirt/test/golden"
)

// goldenCases are the pods of pkg/mutate's golden cases.
const goldenCases = "../../pkg/mutate/testdata/golden/"

func TestExplainGolden(t *testing.T) {
	for name, args := range map[string][]string{
		"rules":       {"-f", native},
		"nat-proxy":   {"-f", goldenCases + "nat-proxy-user-settings/pod.yaml", "--ipv6"},
		"intercepted": {"-f", goldenCases + "rules-intercept-tproxy/pod.yaml"},
		"off":         {"-f", pods + "masquerade-istio-ports/pod.yaml"},
	} {
		t.Run(name, func(t *testing.T) {
			r := meshvirt("", append([]string{"explain"}, args...)...)
			if r.err != nil || r.errOut != "" {
				t.Fatalf("error %v, messages %s", r.err, r.errOut)
			}
			file := filepath.Join("testdata", "explain", name+".txt")
			golden.File(t, file, r.out)
		})
	}
}

// An adapted pod is explained as the one that it was made from, but that nothing is left to change.
func TestExplainAdaptedPod(t *testing.T) {
	for _, mode := range []string{"native", "rules", "nat-proxy"} {
		before := explained(t, "", "-f", native, "--mode", mode)
		adapted := meshvirt("", "inject", "-f", native, "--mode", mode, "--image", "registry.example.com/dataplane:1")
		// The cluster's webhook may have other resources for our containers.
		other := strings.NewReplacer("memory: 64Mi", "memory: 96Mi", "memory: 128Mi", "memory: 160Mi").Replace(adapted.out)
		if other == adapted.out {
			t.Fatalf("%s: no container of ours has 64Mi or 128Mi of memory", mode)
		}
		after := explained(t, other, "-f", "-")
		if len(before.Changes) == 0 || len(after.Changes) > 0 {
			t.Errorf("%s: changes %q, then %q; want some, then none", mode, before.Changes, after.Changes)
		}
		if after.Mode != plan.Mode(mode) || after.Path != before.Path || after.Rules != before.Rules || after.Path == "" {
			t.Errorf("%s: (-before +after)\n%s", mode, cmp.Diff(before.Path+before.Rules, after.Path+after.Rules))
		}
	}
}

// Nor does it matter by which default mode the webhook chose.
func TestExplainPodOfADefaultMode(t *testing.T) {
	var pod corev1.Pod
	if err := yaml.Unmarshal([]byte(readFile(t, native)), &pod); err != nil {
		t.Fatal(err)
	}
	adapted, report, errs := mutate.Apply(&pod, mutate.Facts{}, mutate.Config{Image: templates.Image{Name: "x"}, DefaultMode: plan.NATProxy})
	b, err := json.Marshal(adapted)
	if err != nil || len(errs) > 0 {
		t.Fatal(err, errs)
	}
	x := explained(t, string(b), "-f", "-")
	if x.Mode != plan.NATProxy || x.Reason != decision.ConfiguredDefault || len(x.Changes) > 0 || report.Mode != plan.NATProxy {
		t.Errorf("%+v, want mode nat-proxy, and nothing left to change", x)
	}
}

func explained(t *testing.T, in string, args ...string) (x explanation) {
	t.Helper()
	r := meshvirt(in, append([]string{"explain", "-o", "json"}, args...)...)
	if r.err != nil {
		t.Fatal(r.err)
	}
	if err := json.Unmarshal([]byte(r.out), &x); err != nil {
		t.Fatalf("%v in %s", err, r.out)
	}
	return x
}

func TestExplainForms(t *testing.T) {
	want := explained(t, "", "-f", native)
	var got explanation
	y := meshvirt("", "explain", "-f", native, "-o", "yaml")
	if err := yaml.UnmarshalStrict([]byte(y.out), &got); err != nil || y.err != nil {
		t.Fatal(err, y.err)
	}
	if diff := cmp.Diff(want.String(), got.String()); diff != "" || want.Plan == nil {
		t.Errorf("plan %v (-json +yaml)\n%s", want.Plan, diff)
	}
	if text := meshvirt("", "explain", "-f", native); text.out != want.String() {
		t.Errorf("the text has more or less than the object\n%s", cmp.Diff(want.String(), text.out))
	}

	two := readFile(t, native) + "---\n" + readFile(t, pods+"masquerade-istio-ports/pod.yaml")
	if r := meshvirt(two, "explain", "-f", "-", "-o", "yaml"); r.err != nil || strings.Count(r.out, "---\n") != 1 {
		t.Errorf("error %v, want two documents in %s", r.err, r.out)
	}
	if r := meshvirt(two, "explain", "-f", "-"); r.err != nil || strings.Count("\n"+r.out, "\npod ") != 2 {
		t.Errorf("error %v, want two pods in %s", r.err, r.out)
	}
}

// Every line of the drawing that is MeshVirt's is a rule too.
func TestDrawingIsOfTheRules(t *testing.T) {
	action := regexp.MustCompile(`(?m)  MeshVirt  ([^[\n]*?)(?: \[.*\])?: (.*)$`)
	n := 0
	files, err := filepath.Glob(goldenCases + "*/pod.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no pods (%v)", err)
	}
	for _, file := range files {
		if strings.Contains(file, "/invalid-") {
			continue
		}
		for _, more := range []string{"--ipv6", "--ipv6=false"} {
			args := []string{"-f", file, more}
			if vmi := filepath.Join(filepath.Dir(file), "vmi.yaml"); exists(vmi) {
				args = append(args, "--vmi", vmi)
			}
			x := explained(t, "", args...)
			if (x.Mode == plan.Off) != (x.Path == "") || (x.Mode == plan.Off) != (x.Advice != "") {
				t.Errorf("%s: mode %s, path %q, advice %q", file, x.Mode, x.Path, x.Advice)
			}
			for _, m := range action.FindAllStringSubmatch(x.Path, -1) {
				n++
				if !strings.Contains(x.Rules, m[1]+" comment \""+m[2]+"\"") {
					t.Errorf("%s: %q is drawn, but no rule", file, m[0])
				}
			}
		}
	}
	if n < 400 {
		t.Errorf("%d actions were drawn, want at least 400", n)
	}
}

// A pod that runs has addresses, and so its families are known.
func TestExplainAddresses(t *testing.T) {
	const v4, v6, dns, dns6 = "serves IPv4 only", "serves IPv6, the pod's only family", "nameserver is 10.96.0.10", "nameserver is fd00:10:96::a"
	for name, c := range map[string]struct {
		ips, watch string
		args       []string
		want, miss []string
	}{
		"not known":            {"", "false", nil, []string{v4, dns, "IPv4: peer -> pod", "IPv6: peer -> pod"}, []string{dns6}},
		"of both families":     {"[{ip: 10.1.1.1}, {ip: 'fd00:1::1'}]", "false", nil, []string{v4, dns, "IPv4: peer -> pod", "IPv6: peer -> pod"}, []string{dns6}},
		"of both, with --ipv6": {"[{ip: 10.1.1.1}, {ip: 'fd00:1::1'}]", "false", []string{"--ipv6"}, []string{"serves IPv6 too (--ipv6)", "IPv4, and IPv6 alike: peer -> pod"}, []string{v4}},
		"of IPv4":              {"[{ip: 10.1.1.1}]", "false", nil, []string{dns, "IPv4: peer -> pod", "IPv4: guest -> nameserver:53"}, []string{v4, v6, "IPv6: ", "IPv6 alike"}},
		"of IPv6":              {"[{ip: 'fd00:1::1'}]", "false", nil, []string{v6, dns6, "IPv6: peer -> pod", "IPv6: guest -> nameserver:53", "redirect to :15006"}, []string{v4, "IPv4: ", "IPv4, and"}},
		"of another interface": {"[{ip: 10.1.1.1}]", "true", nil, []string{v4, "IPv6: peer -> pod"}, nil},
		"that nobody can read": {"[{ip: ten}]", "false", nil, []string{v4, "IPv6: peer -> pod"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			pod := readFile(t, pods+"masquerade-traffic-annotations/injected-1.31.0-rc.0-native.yaml") // whose DNS is captured
			pod = strings.Replace(pod, "  annotations:\n", "  annotations:\n    meshvirt.io/watch: \""+c.watch+"\"\n", 1)
			if c.ips != "" {
				pod += "status: {podIPs: " + c.ips + "}\n"
			}
			x := explained(t, pod, append([]string{"-f", "-"}, c.args...)...)
			got := strings.Join(x.Assumed, "\n") + "\n" + x.Path
			for _, w := range c.want {
				if !strings.Contains(got, w) {
					t.Errorf("%q is missing in\n%s", w, got)
				}
			}
			for _, m := range c.miss {
				if strings.Contains(got, m) {
					t.Errorf("%q is not true in\n%s", m, got)
				}
			}
		})
	}
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}

func TestExplainErrors(t *testing.T) {
	bad := strings.Replace(readFile(t, native), "  annotations:\n", "  annotations:\n    meshvirt.io/mode: teleport\n    meshvirt.io/exclude-inbound-ports: \"0\"\n", 1)
	r := meshvirt(bad+"---\n"+readFile(t, native), "explain", "-f", "-")
	if r.err == nil || !strings.Contains(r.out, "reason  Invalid") || !strings.Contains(r.out, "mode    rules") {
		t.Errorf("error %v, want both pods explained in\n%s", r.err, r.out)
	}
	for _, want := range []string{"document 1: pod virt-launcher-vm-web-", `annotations[meshvirt.io/mode]: Invalid value: "teleport"`, "exclude-inbound-ports"} {
		if r.err != nil && !strings.Contains(r.err.Error(), want) {
			t.Errorf("error %v, want %q in it", r.err, want)
		}
	}
	for in, want := range map[string]string{
		"kind: ConfigMap\n":                     "no pod in the manifests",
		"a: [\n":                                "document 1",
		"kind: Pod\nspec: {containers: none}\n": "read pod",
	} {
		if r := meshvirt(in, "explain", "-f", "-"); r.err == nil || r.out != "" || !strings.Contains(r.err.Error(), want) {
			t.Errorf("%s: error %v, output %q, want %q", in, r.err, r.out, want)
		}
	}
}

package main

import (
	"encoding/json"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/rules"
)

var update = flag.Bool("update", false, "write the golden texts of explain")

// golden are the pods of pkg/mutate's golden cases.
const golden = "../../pkg/mutate/testdata/golden/"

func TestExplainGolden(t *testing.T) {
	for name, args := range map[string][]string{
		"rules":       {"-f", native},
		"nat-proxy":   {"-f", golden + "nat-proxy-user-settings/pod.yaml", "--ipv6"},
		"intercepted": {"-f", golden + "rules-intercept-tproxy/pod.yaml"},
		"off":         {"-f", pods + "masquerade-istio-ports/pod.yaml"},
	} {
		t.Run(name, func(t *testing.T) {
			r := meshvirt("", append([]string{"explain"}, args...)...)
			if r.err != nil || r.errOut != "" {
				t.Fatalf("error %v, messages %s", r.err, r.errOut)
			}
			file := filepath.Join("testdata", "explain", name+".txt")
			if *update {
				if err := os.WriteFile(file, []byte(r.out), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if diff := cmp.Diff(readFile(t, file), r.out); diff != "" {
				t.Errorf("`make golden` writes it (-want +got)\n%s", diff)
			}
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

// Every number of the drawing at a place of ours is in the rules too.
func TestDrawingIsOfTheRules(t *testing.T) {
	action := regexp.MustCompile(`(?m)(?:prerouting|output) -101 +(?:(redirect to :\d+)|dnat to ([0-9a-f.:]+))`)
	n := 0
	files, err := filepath.Glob(golden + "*/pod.yaml")
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
				if !strings.Contains(x.Rules, m[1]+m[2]) {
					t.Errorf("%s: %q is drawn, but no rule", file, m[0])
				}
			}
		}
	}
	if n < 50 {
		t.Errorf("%d actions were drawn, want at least 50", n)
	}
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}

// What a plan says shows in the drawing, and what it does not say does not.
func TestDrawPath(t *testing.T) {
	base := func() plan.Plan {
		return plan.Plan{
			Mode: plan.Rules, Interfaces: []string{"k6t-eth0"}, PodInterface: "eth0",
			Guest:    plan.Guest{IPv4: netip.MustParseAddr("10.0.2.2"), IPv6: netip.MustParseAddr("fd10:0:2::2")},
			Mesh:     plan.Mesh{OutboundPort: 15001, InboundPort: 15006, UID: 1337, GID: 1337, OwnPorts: []uint16{15021}},
			Outbound: plan.Outbound{All: true}, Inbound: plan.Inbound{All: true},
		}
	}
	for name, c := range map[string]struct {
		change     func(*plan.Plan)
		want, miss []string
	}{
		"plain":            {func(*plan.Plan) {}, []string{"any address", "UDP port any", "does not capture", "the mesh does not serve it"}, []string{"excluded", "else", "fd10"}},
		"both families":    {func(p *plan.Plan) { p.Mesh.DualStack = true }, []string{"dnat to 10.0.2.2 or fd10:0:2::2", "127.0.0.6 or ::6"}, []string{"IPv6"}},
		"nothing included": {func(p *plan.Plan) { p.Outbound.All, p.Inbound.All = false, false }, []string{"no TCP of the guest goes into the mesh", "TCP to anything else", "any other TCP port"}, []string{":15001", ":15006"}},
		"inclusions": {func(p *plan.Plan) {
			p.Outbound = plan.Outbound{IncludeCIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, IncludePorts: []uint16{443}}
			p.Inbound = plan.Inbound{IncludePorts: []uint16{80}}
		}, []string{"TCP to 10.0.0.0/8; TCP port 443", "peer -> pod, TCP port 80", "TCP to anything else"}, []string{"any address"}},
		"listed ports": {func(p *plan.Plan) {
			p.Guest.TCP = []plan.PortRange{plan.Port(80), {First: 8000, Last: 8100}}
			p.Inbound.ExcludePorts = []uint16{22, 8050, 15021}
		}, []string{"has the port: 80, 8000-8100, 22\n", "excluded  peer -> pod, TCP port 22, 8050\n", "lists no UDP port"}, []string{"UDP port any"}},
		"DNS of the nameservers": {func(p *plan.Plan) { p.Mesh.DNS = &plan.DNS{Port: 15053} }, []string{"the pod's nameservers", "dnat to 127.0.0.1:15053"}, nil},
		"all DNS":                {func(p *plan.Plan) { p.Mesh.DNS = &plan.DNS{Port: 15053, All: true} }, []string{"any server"}, nil},
		"DNS by the relay": {func(p *plan.Plan) {
			p.Mode, p.Mesh.DNS = plan.NATProxy, &plan.DNS{Port: 15053}
			p.Proxy = &plan.Proxy{UID: 1500, OutboundPort: 15101, InboundPort: 15106, StatusPort: 15120, DNSPort: 15153}
		}, []string{"the pod's nameservers, UDP port 53\n", "redirect to :15153", "asks the nameserver from the pod", "redirect to :15053"}, []string{"127.0.0.1:15053", "over IPv4"}},
		"DNS without a forwarder": {func(p *plan.Plan) {
			p.Mode, p.Mesh.DNS = plan.NATProxy, &plan.DNS{Port: 15053}
			p.Proxy = &plan.Proxy{UID: 1500, OutboundPort: 15101, InboundPort: 15106, StatusPort: 15120}
		}, []string{"UDP is not captured"}, []string{"15053", "15153"}},
		"native": {func(p *plan.Plan) { p.Mode, p.Mesh.DNS = plan.Native, &plan.DNS{Port: 15053} },
			[]string{"(-k) to :15001", "exclusions do not hold", "one zone"}, []string{"-101", "15053"}},
		"first Istio": {func(p *plan.Plan) { p.Mesh.DialsLoopback = true }, []string{"dials 127.0.0.1, or"}, nil},
		"tproxy": {func(p *plan.Plan) {
			p.Mode, p.WatchPort = plan.TProxy, 15121
			p.Proxy = &plan.Proxy{OutboundPort: 15101, InboundPort: 15106, StatusPort: 15120}
		}, []string{"tproxy to :15101", "redirect to :15106", "TCP port 15021, 15120, 15121"}, []string{"redirect to :15101"}},
		"intercepted": {func(p *plan.Plan) { p.Mesh.TProxyMark, p.Inbound.ExcludePorts = 1337, []uint16{22} },
			[]string{"TPROXY to :15006", "(gid 1337)", "mark 0x539", "sees the peer's address", "keeps the mesh's TPROXY away", "TCP port 22"}, []string{"redirect to :15006", "127.0.0.6", "the bridge's address"}},
		"intercepted, with a relay": {func(p *plan.Plan) {
			p.Mode, p.Mesh.TProxyMark, p.Proxy = plan.NATProxy, 1337, &plan.Proxy{UID: 1500, OutboundPort: 15101, InboundPort: 15106, StatusPort: 15120}
		}, []string{"redirect to :15101", "TPROXY to :15006", "dnat to 10.0.2.2"}, []string{"redirect to :15106"}},
		"several interfaces": {func(p *plan.Plan) { p.Interfaces = []string{"k6t-eth0", "k6t-net1"} }, []string{"k6t-eth0,k6t-net1  prerouting -101"}, nil},
		"an IPv6 guest only": {func(p *plan.Plan) { p.Guest.IPv4 = netip.Addr{} }, []string{"guest fd10:0:2::2"}, []string{"invalid"}},
		"a long list": {func(p *plan.Plan) {
			for i := range uint16(1000) {
				p.Outbound.ExcludePorts = append(p.Outbound.ExcludePorts, 1000+i)
			}
		}, []string{"1009, and 990 more"}, []string{"1010"}},
	} {
		t.Run(name, func(t *testing.T) {
			p := base()
			c.change(&p)
			if _, err := rules.Build(withRelease(p), rules.Pod{}); err != nil {
				t.Fatal(err)
			}
			got := drawPath(p, rules.Pod{})
			for _, want := range c.want {
				if !strings.Contains(got, want) {
					t.Errorf("%q is missing in\n%s", want, got)
				}
			}
			for _, miss := range c.miss {
				if strings.Contains(got, miss) {
					t.Errorf("%q is not true in\n%s", miss, got)
				}
			}
		})
	}
}

func withRelease(p plan.Plan) plan.Plan {
	p.Release = plan.Release
	return p
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

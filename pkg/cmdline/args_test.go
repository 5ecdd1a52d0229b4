package cmdline

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func list(s ...string) []string { return s }

func TestParseForms(t *testing.T) {
	tests := []struct {
		args []string
		want map[Flag]string
	}{
		{nil, map[Flag]string{}},
		{list("-p", "15001"), map[Flag]string{FlagOutboundPort: "15001"}},
		{list("-p15001"), map[Flag]string{FlagOutboundPort: "15001"}},
		{list("-p=15001"), map[Flag]string{FlagOutboundPort: "15001"}},
		{list("-p=="), map[Flag]string{FlagOutboundPort: "="}},
		{list("-x="), map[Flag]string{FlagExcludeOutboundCIDRs: "="}},
		{list("-x", ""), map[Flag]string{FlagExcludeOutboundCIDRs: ""}},
		{list("-x", "-k"), map[Flag]string{FlagExcludeOutboundCIDRs: "-k"}},
		{list("-x", "--"), map[Flag]string{FlagExcludeOutboundCIDRs: "--"}},
		{list("--envoy-port", "15001"), map[Flag]string{FlagOutboundPort: "15001"}},
		{list("--envoy-port=15001"), map[Flag]string{FlagOutboundPort: "15001"}},
		{list("--envoy-port="), map[Flag]string{FlagOutboundPort: ""}},
		{list("--envoy-port", ""), map[Flag]string{FlagOutboundPort: ""}},
		{list("--envoy-port=a=b"), map[Flag]string{FlagOutboundPort: "a=b"}},
		{list("--dual-stack", "false"), map[Flag]string{FlagDualStack: "true"}},
		{list("--dual-stack=false"), map[Flag]string{FlagDualStack: "false"}},
		{list("-n", "false"), map[Flag]string{"dry-run": "true"}},
		{list("-n=false"), map[Flag]string{"dry-run": "false"}},
		{list("-nf"), map[Flag]string{"dry-run": "true", "restore-format": "true"}},
		{list("-nf=false"), map[Flag]string{"dry-run": "true", "restore-format": "false"}},
		{list("-nfp15001"), map[Flag]string{"dry-run": "true", "restore-format": "true", FlagOutboundPort: "15001"}},
		{list("-nfp=15001"), map[Flag]string{"dry-run": "true", "restore-format": "true", FlagOutboundPort: "15001"}},
		{list("-nfp", "15001"), map[Flag]string{"dry-run": "true", "restore-format": "true", FlagOutboundPort: "15001"}},
		{list("-pn"), map[Flag]string{FlagOutboundPort: "n"}},
		{list("-k", "a", "-k", "b", "--kube-virt-interfaces=c"), map[Flag]string{FlagRerouteInterfaces: "c"}},
		{list("--dual-stack", "--dual-stack=false"), map[Flag]string{FlagDualStack: "false"}},
		{list("-k", "a", "--", "-k", "b"), map[Flag]string{FlagRerouteInterfaces: "a"}},
		{list("istio-iptables", "-k", "a"), map[Flag]string{FlagRerouteInterfaces: "a"}},
		{list("/usr/local/bin/pilot-agent", "--log_output_level", "all:info", "istio-iptables", "-k", "a"), map[Flag]string{FlagRerouteInterfaces: "a", "log_output_level": "all:info"}},
		{list("--unknown", "-k", "a"), map[Flag]string{FlagRerouteInterfaces: "a"}},
		{list("--unknown", "x", "-k", "a"), map[Flag]string{FlagRerouteInterfaces: "a"}},
		{list("--unknown=-k", "a"), map[Flag]string{}},
		{list("-W", "-k", "a"), map[Flag]string{FlagRerouteInterfaces: "a"}},
		{list("-Wk", "a"), map[Flag]string{}},
		{list("-", "---k", "--=k", "-k", "a"), map[Flag]string{FlagRerouteInterfaces: "a"}},
	}
	for _, tt := range tests {
		t.Run(strings.Join(tt.args, " "), func(t *testing.T) {
			a := parse(t, tt.args)
			if diff := cmp.Diff(tt.want, values(a)); diff != "" {
				t.Errorf("values (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.args, a.Strings()); diff != "" {
				t.Errorf("list (-want +got):\n%s", diff)
			}
		})
	}
}

func TestParseNamesTheFlagWithoutValue(t *testing.T) {
	for arg, name := range map[string]string{
		"-p": "-p/--envoy-port", "--envoy-port": "--envoy-port", "-nfk": "-k/--kube-virt-interfaces", "--log_output_level": "--log_output_level",
	} {
		_, err := Parse(list("-z", "15006", arg))
		if err == nil || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), "value") {
			t.Errorf("Parse(%q) = %v, want an error that names %s and wants a value", arg, err, name)
		}
	}
}

func TestChange(t *testing.T) {
	exclude := func(a *Args) { a.ExcludeInterface("eth9") }
	reroute := func(a *Args) { a.Reroute("eth9") }
	set := func(f Flag, v string) func(*Args) { return func(a *Args) { a.Set(f, v) } }
	add := func(f Flag, v string) func(*Args) { return func(a *Args) { a.AddToList(f, v) } }
	drop := func(f Flag, v string) func(*Args) { return func(a *Args) { a.RemoveFromList(f, v) } }
	remove := func(f Flag) func(*Args) { return func(a *Args) { a.Remove(f) } }
	tests := []struct {
		name       string
		change     func(*Args)
		args, want []string
	}{
		{"exclude takes the place of -k", exclude, list("-d", "1", "-k", "eth9", "--log_output_level=x"), list("-d", "1", "--istio-exclude-interfaces=eth9", "--log_output_level=x")},
		{"exclude attached", exclude, list("-keth9", "-n"), list("--istio-exclude-interfaces=eth9", "-n")},
		{"exclude after equals sign", exclude, list("-k=eth9"), list("--istio-exclude-interfaces=eth9")},
		{"exclude long", exclude, list("--kube-virt-interfaces", "eth9"), list("--istio-exclude-interfaces=eth9")},
		{"exclude out of a group", exclude, list("-nketh9", "-f"), list("--istio-exclude-interfaces=eth9", "-n", "-f")},
		{"exclude leaves other interfaces", exclude, list("-k", "a, eth9,b"), list("--istio-exclude-interfaces=eth9", "-k", "a,b")},
		{"exclude extends -c", exclude, list("-k", "eth9", "-c", "net1", "-n"), list("-c", "net1,eth9", "-n")},
		{"exclude extends -c attached", exclude, list("-cnet1", "-k", "eth9"), list("-cnet1,eth9")},
		{"exclude extends -c=", exclude, list("-c=net1"), list("-c=net1,eth9")},
		{"exclude extends long", exclude, list("--istio-exclude-interfaces", "net1"), list("--istio-exclude-interfaces", "net1,eth9")},
		{"exclude extends long=", exclude, list("--istio-exclude-interfaces=net1"), list("--istio-exclude-interfaces=net1,eth9")},
		{"exclude fills empty -c", exclude, list("-c", "", "-n"), list("-c", "eth9", "-n")},
		{"exclude changes the -c that counts", exclude, list("-c", "a", "-c", "b"), list("-c", "a", "-c", "b,eth9")},
		{"exclude wakes no earlier -k", exclude, list("-k", "a", "-k", "eth9"), list("--istio-exclude-interfaces=eth9")},
		{"exclude in the earlier -k too", exclude, list("-k", "eth9", "-k", "a"), list("--istio-exclude-interfaces=eth9", "-k", "a")},
		{"exclude without -k", exclude, list("istio-iptables", "-p", "1", "--log_output_level=x"), list("istio-iptables", "-p", "1", "--istio-exclude-interfaces=eth9", "--log_output_level=x")},
		{"exclude before the terminator", exclude, list("istio-iptables", "--", "-k", "eth9"), list("istio-iptables", "--istio-exclude-interfaces=eth9", "--", "-k", "eth9")},
		{"exclude after the sub-command", exclude, list("istio-iptables"), list("istio-iptables", "--istio-exclude-interfaces=eth9")},
		{"exclude keeps an unknown flag with its operand", exclude, list("--new", "x", "-k", "eth9"), list("--new", "x", "--istio-exclude-interfaces=eth9")},
		{"exclude twice", func(a *Args) { exclude(a); exclude(a) }, list("-k", "eth9"), list("--istio-exclude-interfaces=eth9")},

		{"reroute", reroute, list("-p", "1", "--dual-stack"), list("-p", "1", "-k", "eth9", "--dual-stack")},
		{"reroute undoes exclude", reroute, list("-d", "1", "--istio-exclude-interfaces=eth9", "--log_output_level=x"), list("-d", "1", "-k", "eth9", "--log_output_level=x")},
		{"reroute leaves other exclusions", reroute, list("-c", "net1,eth9"), list("-k", "eth9", "-c", "net1")},
		{"reroute extends -k", reroute, list("-k", "a"), list("-k", "a,eth9")},
		{"reroute fills an empty -k", reroute, list("-k", "", "-n"), list("-k", "eth9", "-n")},
		{"reroute what is rerouted", reroute, list("-keth9"), list("-keth9")},

		{"set in place", set(FlagExcludeInboundPorts, "80"), list("-p", "1", "-d", "22", "-n"), list("-p", "1", "-d", "80", "-n")},
		{"set attached empty", set(FlagExcludeInboundPorts, ""), list("-d22", "-n"), list("-d", "", "-n")},
		{"set = empty", set(FlagExcludeInboundPorts, ""), list("-d=22", "-n"), list("-d", "", "-n")},
		{"set group empty", set(FlagExcludeInboundPorts, ""), list("-fd22", "-n"), list("-fd", "", "-n")},
		{"set attached to begin with =", set(FlagExcludeInboundPorts, "=x"), list("-d22"), list("-d==x")},
		{"set long empty", set(FlagExcludeInboundPorts, ""), list("--istio-local-exclude-ports=22"), list("--istio-local-exclude-ports=")},
		{"set -x= literal", set(FlagExcludeOutboundCIDRs, "10.0.0.0/8"), list("-x="), list("-x10.0.0.0/8")},
		{"set boolean", set(FlagDualStack, "false"), list("-p", "1", "--dual-stack", "-z", "2"), list("-p", "1", "--dual-stack=false", "-z", "2")},
		{"set boolean as it is", set(FlagDualStack, "true"), list("--dual-stack"), list("--dual-stack")},
		{"set boolean of a group", set("dry-run", "false"), list("-nf"), list("-f", "--dry-run=false")},
		{"set new", set(FlagDualStack, "true"), list("-p", "1", "--reconcile"), list("-p", "1", "--dual-stack=true", "--reconcile")},

		{"add is not doubled", add(FlagExcludeInboundPorts, "22"), list("-d", "80, 22"), list("-d", "80, 22")},
		{"add after a comma", add(FlagExcludeInboundPorts, "22"), list("-d", "80,"), list("-d", "80,22")},
		{"drop the last item", drop(FlagExcludeInboundPorts, "22"), list("-d", "22", "-n"), list("-n")},
		{"drop what is not there", drop(FlagExcludeInboundPorts, "22"), list("-d", "80, 90"), list("-d", "80, 90")},
		{"drop from an empty list", drop(FlagExcludeInboundPorts, "22"), list("-d", ""), list("-d", "")},
		{"edit a group twice", func(a *Args) { a.Remove("dry-run"); a.AddToList(FlagRerouteInterfaces, "b") }, list("-nfka", "-p1"), list("-fka,b", "-p1")},
		{"edit a group with = twice", func(a *Args) { a.Remove("dry-run"); a.AddToList(FlagRerouteInterfaces, "b") }, list("-nfk=a"), list("-fk=a,b")},
		{"edit and empty", func(a *Args) { a.AddToList(FlagRerouteInterfaces, "b"); a.Set(FlagRerouteInterfaces, "") }, list("-ka", "-p1"), list("-k", "", "-p1")},
		{"remove all forms", remove(FlagOutboundPort), list("-p", "1", "-np2", "--envoy-port=3", "--envoy-port", "4", "-p5"), list("-n")},
		{"remove from the middle of a group", remove("restore-format"), list("-nfp=1", "-nf=true", "-fn", "-nfp", "2"), list("-np=1", "-n", "-n", "-np", "2")},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a := parse(t, tt.args)
			original := a
			tt.change(&a)
			if diff := cmp.Diff(tt.want, a.Strings()); diff != "" {
				t.Errorf("list (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.args, original.Strings()); diff != "" {
				t.Errorf("the copy made before the change (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(values(parse(t, a.Strings())), values(a)); diff != "" {
				t.Errorf("values as a parser of the new list sees them (-parsed +kept):\n%s", diff)
			}
		})
	}
}

// Every recorded list comes back as it was, also after an interface was excluded and rerouted.
func TestRecordedListsRoundTrip(t *testing.T) {
	lists := recorded(t)
	rerouted := 0
	for name, args := range lists {
		a := parse(t, args)
		if diff := cmp.Diff(args, a.Strings()); diff != "" {
			t.Errorf("%s: unchanged list (-want +got):\n%s", name, diff)
		}
		k, ok := a.Value(FlagRerouteInterfaces)
		a.ExcludeInterface("k6t-eth0")
		if c, _ := a.Value(FlagExcludeInterfaces); !slices.Contains(strings.Split(c, ","), "k6t-eth0") {
			t.Errorf("%s: %q excludes %q, want k6t-eth0 among them", name, a.Strings(), c)
		}
		if ok && k == "k6t-eth0" {
			rerouted++
			if _, still := a.Value(FlagRerouteInterfaces); still {
				t.Errorf("%s: still reroutes: %q", name, a.Strings())
			}
			a.Reroute("k6t-eth0")
		} else {
			a.RemoveFromList(FlagExcludeInterfaces, "k6t-eth0")
		}
		if diff := cmp.Diff(args, a.Strings()); diff != "" {
			t.Errorf("%s: list excluded and back (-want +got):\n%s", name, diff)
		}
	}
	if rerouted < 50 || rerouted == len(lists) {
		t.Errorf("%d of %d lists reroute k6t-eth0, want many of both kinds", rerouted, len(lists))
	}
}

// No release is told a flag that it does not know: the program would end, and the pod with it.
func TestInterfacesByRelease(t *testing.T) {
	for _, c := range []struct{ image, given, excluded, rerouted string }{
		{"proxyv2:1.31.0", "-p 1 -k a,b", "-p 1 --istio-exclude-interfaces=a -k b", "-p 1 -k a,b"},
		{"proxyv2:1.11.8", "-p 1 -k a,b", "-p 1 --istio-exclude-interfaces=a -k b", "-p 1 -k a,b"},
		{"proxyv2:1.9.0", "-p 1 -k a,b", "-p 1 -k b", "-p 1 -k a,b"},
		{"proxy_init:1.1.0", "-p 1", "-p 1", "-p 1 -k a"},
		{"proxy_init:0.7.1", "-p 1", "-p 1", "-p 1"},
		{"proxyv2:custom", "-p 1 -k a", "-p 1 --istio-exclude-interfaces=a", "-p 1 -k a"},
	} {
		for what, change := range map[string]struct {
			do   func(*Args, string)
			want string
		}{"excluded": {(*Args).ExcludeInterface, c.excluded}, "rerouted": {(*Args).Reroute, c.rerouted}} {
			args, err := Parse(strings.Fields(c.given))
			if err != nil {
				t.Fatal(err)
			}
			args = args.Within(c.image, nil)
			change.do(&args, "a")
			if got := strings.Join(args.Strings(), " "); got != change.want {
				t.Errorf("%s, %s: %s, want %s", c.image, what, got, change.want)
			}
		}
	}
}

// recorded are the argument lists of recorded runs and pods, which are with the tests of what they do, those of package
// mesh.
func recorded(t testing.TB) map[string][]string {
	t.Helper()
	files, err := filepath.Glob("../mesh/testdata/istio-iptables/*.json")
	if err != nil || len(files) != 7 {
		t.Fatalf("found the runs of %d releases, want 7 (%v)", len(files), err)
	}
	lists := map[string][]string{}
	for _, file := range append(files, "../mesh/testdata/istio-pods.json") {
		var all []struct {
			Case, File string
			Args       []string
		}
		b, err := os.ReadFile(file)
		if err == nil {
			err = json.Unmarshal(b, &all)
		}
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		for _, x := range all {
			lists[filepath.Base(file)+" "+x.Case+x.File] = x.Args
		}
	}
	return lists
}

func parse(t testing.TB, args []string) Args {
	t.Helper()
	a, err := Parse(args)
	if err != nil {
		t.Fatalf("Parse(%q): %v", args, err)
	}
	return a
}

// values are all flags that a has, booleans as pflag spells them.
func values(a Args) map[Flag]string {
	got := map[Flag]string{}
	for f, d := range flags {
		v, ok := a.Value(f)
		if !ok {
			continue
		}
		if b, err := strconv.ParseBool(v); err == nil && d.isBool {
			v = strconv.FormatBool(b)
		}
		got[f] = v
	}
	return got
}

// unknowns are the elements that belong to no known flag.
func unknowns(a Args) []string {
	var all []string
	for _, t := range a.tokens {
		if len(t.flags) == 0 {
			all = append(all, t.elems...)
		}
	}
	return all
}

package cmdline

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/spf13/pflag"

	"github.com/meshvirt/meshvirt/pkg/plan"
)

// Random spellings of known flags mean to pflag, which the real program uses, what they mean here;
// after a change pflag sees that change and no other.
func TestAgainstPflag(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	agreed := 0
	for range 10000 {
		args := spell(random)
		if checkAgainstPflag(t, args, pick(random, "k6t-eth0", "net1", "eth0")) {
			agreed++
		}
		if t.Failed() {
			t.Fatalf("args %q", args)
		}
	}
	if agreed < 3000 {
		t.Errorf("pflag accepted %d lists only", agreed)
	}
}

// spell makes a list of known flags in any form that there is.
func spell(random *rand.Rand) []string {
	var args []string
	names := sortedFlags()
	for range random.IntN(8) {
		f := pick(random, names...)
		if random.IntN(2) == 0 {
			f = pick(random, FlagRerouteInterfaces, FlagExcludeInterfaces)
		}
		v := pick(random, "15001", "", "*", "k6t-eth0", "k6t-eth0,net1", " net1 , k6t-eth0", "net1,,", ",", "=", "=a", "-k", "-", "--", "10.0.0.0/8", "true", "false")
		d := flags[f]
		head := "--" + string(f)
		if d.short != 0 && random.IntN(3) > 0 {
			head = "-" + pick(random, "", "", "n", "f", "nf") + string(d.short)
		}
		args = append(args, pick(random,
			list(head, v), list(head+"="+v), list(head+"="+v), list(head+v), list(head))...)
		if random.IntN(30) == 0 {
			args = append(args, pick(random, "--", "-", "operand", "istio-iptables", ""))
		}
	}
	return args
}

// checkAgainstPflag parses and changes args and asks pflag each time. It reports whether pflag knows
// how to read args at all.
func checkAgainstPflag(t *testing.T, args []string, name string) bool {
	t.Helper()
	before, ok := pflagValues(args)
	if !ok {
		return false
	}
	a, err := Parse(args)
	if err != nil {
		t.Errorf("Parse: %v, but pflag accepts it", err)
		return true
	}
	if diff := cmp.Diff(before, values(a), cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("values (-pflag +got):\n%s", diff)
	}
	check := func(what string, b Args, to, from Flag) {
		t.Helper()
		after, ok := pflagValues(b.Strings())
		if !ok {
			t.Errorf("%s: pflag does not accept %q", what, b.Strings())
			return
		}
		if diff := cmp.Diff(after, values(b)); diff != "" {
			t.Errorf("%s: values of %q (-pflag +got):\n%s", what, b.Strings(), diff)
		}
		want := func(f Flag, change ...string) {
			t.Helper()
			if diff := cmp.Diff(change, Items(after[f]), cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("%s: %s (-want +got):\n%s", what, f, diff)
			}
		}
		gains := Items(before[to])
		if !slices.Contains(gains, name) {
			gains = append(gains, name)
		}
		want(to, gains...)
		want(from, slices.DeleteFunc(Items(before[from]), func(s string) bool { return s == name })...)
		others := cmpopts.IgnoreMapEntries(func(f Flag, _ string) bool { return f == to || f == from })
		if diff := cmp.Diff(before, after, others); diff != "" {
			t.Errorf("%s: other flags (-before +after):\n%s", what, diff)
		}
	}
	b := a
	b.ExcludeInterface(name)
	check("exclude", b, FlagExcludeInterfaces, FlagRerouteInterfaces)
	c := a
	c.Reroute(name)
	check("reroute", c, FlagRerouteInterfaces, FlagExcludeInterfaces)
	return true
}

// pflagValues has pflag itself read args. It gives the flags that are set, or false for an error.
func pflagValues(args []string) (map[Flag]string, bool) {
	set := pflag.NewFlagSet("istio-iptables", pflag.ContinueOnError)
	set.SetOutput(nowhere{})
	for f, d := range flags {
		short := strings.TrimRight(string(rune(d.short)), "\x00")
		if d.isBool {
			set.BoolP(string(f), short, false, "")
		} else {
			set.StringP(string(f), short, "", "")
		}
	}
	if set.Parse(args) != nil {
		return nil, false
	}
	got := map[Flag]string{}
	set.Visit(func(f *pflag.Flag) { got[Flag(f.Name)] = f.Value.String() })
	return got, true
}

type nowhere struct{}

func (nowhere) Write(b []byte) (int, error) { return len(b), nil }

func FuzzArgs(f *testing.F) {
	for _, args := range recorded(f) {
		f.Add(strings.Join(args, "\n"), "k6t-eth0")
	}
	f.Add("--new\nx\n-nkk6t-eth0\n-c=a,b\n--\n-k\nc", "k6t-eth0")
	f.Fuzz(func(t *testing.T, lines, name string) {
		args := strings.Split(lines, "\n")
		if !plan.ValidInterface(name) {
			name = "k6t-eth0"
		}
		a, err := Parse(args)
		if err != nil {
			return
		}
		if !slices.Equal(args, a.Strings()) {
			t.Errorf("unchanged list is %q", a.Strings())
		}
		b := a
		b.ExcludeInterface(name)
		once := b.Strings()
		b.ExcludeInterface(name)
		if !slices.Equal(once, b.Strings()) {
			t.Errorf("excluded once: %q, twice: %q", once, b.Strings())
		}
		if again := parse(t, once); !cmp.Equal(unknowns(a), unknowns(again)) || !cmp.Equal(values(b), values(again)) {
			t.Errorf("%q: unknown %q, values %q", once, unknowns(again), values(again))
		}
		// pflag skips what looks like a flag of `go test`, -test.v; no mark of -t looks like that.
		if !strings.Contains(lines, "test.") {
			checkAgainstPflag(t, args, name)
		}
	})
}

func sortedFlags() []Flag {
	var all []Flag
	for f := range flags {
		all = append(all, f)
	}
	slices.Sort(all)
	return all
}

func pick[T any](random *rand.Rand, from ...T) T { return from[random.IntN(len(from))] }

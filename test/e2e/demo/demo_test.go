package main

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/test/e2e/apiserver"
	"github.com/meshvirt/meshvirt/test/e2e/netlab"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/sidecar"
)

func TestWrap(t *testing.T) {
	got := wrap([]string{"guest", "k6t-eth0", "sidecar", "peer"}, ": EOF", 20)
	if diff := cmp.Diff([]string{"guest -> k6t-eth0 ->", "sidecar -> peer: EOF"}, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestEnding(t *testing.T) {
	for name, c := range map[string]struct {
		r    netlab.Result
		want string
	}{
		"fine":           {netlab.Result{OK: true}, ""},
		"a name's":       {netlab.Result{OK: true, Answer: "192.0.2.1"}, ": 192.0.2.1"},
		"long error":     {netlab.Result{Err: errors.New("read tcp a->b: read: connection refused")}, ": connection refused"},
		"short error":    {netlab.Result{Err: errors.New("EOF")}, ": EOF"},
		"nothing at all": {netlab.Result{Flow: netlab.Flow{Network: "raw-tcp"}, Err: errors.New(`no connection (answer "")`)}, ": no answer"},
	} {
		if got := ending(c.r); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func TestMet(t *testing.T) {
	in, out := []sidecar.Direction{sidecar.In}, []sidecar.Direction{sidecar.Out}
	fromGuest := netlab.Flow{From: netlab.Guest}
	for name, c := range map[string]struct {
		want want
		r    netlab.Result
		met  bool
	}{
		"through":               {meshed, netlab.Result{Flow: fromGuest, OK: true, Via: out}, true},
		"in by outbound":        {meshed, netlab.Result{OK: true, Via: out}, false},
		"in":                    {meshed, netlab.Result{OK: true, Via: in}, true},
		"through twice":         {meshed, netlab.Result{Flow: fromGuest, OK: true, Via: slices.Concat(out, in)}, false},
		"through, and fails":    {meshed, netlab.Result{Flow: fromGuest, Via: out}, false},
		"not through":           {meshed, netlab.Result{Flow: fromGuest, OK: true}, false},
		"past":                  {direct, netlab.Result{OK: true}, true},
		"not past":              {direct, netlab.Result{OK: true, Via: out}, false},
		"past, and fails":       {direct, netlab.Result{}, false},
		"the sidecar's answer":  {answered, netlab.Result{OK: true, Answer: sidecar.DNSAnswer.String()}, true},
		"another one's answer":  {answered, netlab.Result{OK: true, Answer: netlab.ClusterDNSAnswer.String()}, false},
		"no answer":             {answered, netlab.Result{}, false},
		"refused":               {refused, netlab.Result{}, true},
		"reached":               {refused, netlab.Result{OK: true}, false},
		"an unknown want fails": {"?", netlab.Result{OK: true}, false},
	} {
		if got := met(c.want, c.r); got != c.met {
			t.Errorf("%s: %t, want %t", name, got, c.met)
		}
	}
}

// The flows exist, and the summary fits the terminal whatever happens to them.
func TestSummary(t *testing.T) {
	outcomes := map[plan.Mode][]netlab.Result{}
	for _, mode := range modes {
		for _, e := range expectations {
			outcomes[mode] = append(outcomes[mode], netlab.Result{Flow: netlab.FlowNamed(e.flow), OK: true, Via: []sidecar.Direction{"elsewhere"}})
		}
	}
	var out bytes.Buffer
	newPrinter(&out).summary(outcomes)
	for line := range strings.Lines(out.String()) {
		if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > width {
			t.Errorf("%d columns: %s", n, line)
		}
		if strings.Contains(line, "\x1b") {
			t.Errorf("colour outside a terminal: %q", line)
		}
	}
}

func TestBroken(t *testing.T) {
	fine := func(e expectation) netlab.Result {
		r := netlab.Result{Flow: netlab.FlowNamed(e.flow), OK: e.want != refused}
		switch {
		case e.want == meshed && r.Flow.From == netlab.Guest:
			r.Via = []sidecar.Direction{sidecar.Out}
		case e.want == meshed:
			r.Via = []sidecar.Direction{sidecar.In}
		case e.want == answered:
			r.Answer = sidecar.DNSAnswer.String()
		}
		return r
	}
	outcomes := map[plan.Mode][]netlab.Result{}
	for _, e := range expectations {
		outcomes[plan.Off] = append(outcomes[plan.Off], netlab.Result{Flow: netlab.FlowNamed(e.flow)})
		outcomes[plan.Rules] = append(outcomes[plan.Rules], fine(e))
		outcomes[plan.NATProxy] = append(outcomes[plan.NATProxy], fine(e))
	}
	if err := broken(outcomes); err != nil {
		t.Errorf("mode off promises nothing, the others keep their promises: %v", err)
	}
	outcomes[plan.NATProxy][0].OK = false
	err := broken(outcomes)
	if err == nil || !strings.Contains(err.Error(), "nat-proxy: "+expectations[0].name) || strings.Contains(err.Error(), "rules: ") {
		t.Errorf("got error %v, want one for mode nat-proxy and %s alone", err, expectations[0].name)
	}
}

// The exclusions of mode off are where Istio's own template puts them.
func TestExclude(t *testing.T) {
	recording, err := apiserver.Load(kubevirtRelease, vmCase, istioRelease+"-"+istioSetup)
	if err != nil {
		t.Fatal(err)
	}
	edited, err := recording.Edited(func(injected *corev1.Pod) { exclude(injected, "198.51.100.0/24", "3306") })
	if err != nil {
		t.Fatal(err)
	}
	pod, err := edited.Inject(edited.Pod)
	if err != nil {
		t.Fatal(err)
	}
	args := strings.Join(pod.Spec.InitContainers[0].Args, " ")
	if !strings.Contains(args, "-x 198.51.100.0/24 -b") || !strings.HasSuffix(args, "-o 3306") {
		t.Errorf("istio-init's arguments are %s", args)
	}
	if pod, err := recording.Inject(recording.Pod); err != nil || strings.Contains(strings.Join(pod.Spec.InitContainers[0].Args, " "), "3306") {
		t.Errorf("the recording itself changed (%v)", err)
	}
}

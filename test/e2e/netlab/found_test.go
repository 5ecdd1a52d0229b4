package netlab

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/meshvirt/meshvirt/pkg/mutate"
	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/templates"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/container"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/sidecar"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/vm"
	"github.com/meshvirt/meshvirt/tools"
)

// The pods here are not as admission assumes: another pod interface, another VM network.
var (
	network4 = netip.MustParsePrefix("10.11.12.0/24")
	network6 = netip.MustParsePrefix("fd20::/120")
)

// watchedPlan is handMade for a pod of which nothing is certain, with a watcher.
func watchedPlan(mode plan.Mode) plan.Plan {
	p := handMade(mode)
	p.WatchPort, p.Assumed = 15121, plan.Assumed{Interfaces: true, Guest: true}
	return p
}

// here puts the lab's addresses into flows and outcomes.
func (l *Lab) here(want map[string]string) ([]Flow, map[string]string) {
	addrs := map[netip.Addr]netip.Addr{
		GuestIP4: l.guests()[0].Addr(), BridgeIP4: l.gateways()[0].Addr(), BridgeIP6: l.gateways()[1].Addr(),
		netip.MustParseAddr("10.0.2.77"): l.hosts(77)[0].Addr(),
	}
	var flows []Flow
	for _, f := range Flows {
		for _, ap := range []*netip.AddrPort{&f.Src, &f.To} {
			if a, ok := addrs[ap.Addr()]; ok {
				*ap = at(a, ap.Port())
			}
		}
		flows = append(flows, f)
	}
	out := map[string]string{}
	for name, outcome := range want {
		for was, is := range addrs {
			if head, ok := strings.CutSuffix(outcome, "saw "+was.String()); ok {
				outcome = head + "saw " + is.String()
				break
			}
		}
		out[name] = outcome
	}
	return flows, out
}

// wantHere is wantOutcomes with the lab's addresses.
func wantHere(t *testing.T, l *Lab, want map[string]string) {
	t.Helper()
	flows, want := l.here(want)
	l.Check(t.Context(), FlowNamed("icmp4"))
	for _, f := range flows {
		if r := l.Check(t.Context(), f); r.Outcome() != want[f.Name] {
			t.Errorf("%s\n got outcome %q\nwant %q", r, r.Outcome(), want[f.Name])
		}
	}
}

// foundLab is a pod before KubeVirt has made the bridge. Istio was told of the interface that admission assumed. Its
// proxy starts after our containers, as a native sidecar does.
func foundLab(t *testing.T, o Options) (l *Lab, startProxy func()) {
	t.Helper()
	o.DualStack, o.Image = true, dataPlane(t)
	l = newLab(t, o)
	rules, err := l.IstioInit(t.Context(), "1.29.6", NFT, istioArgs("--dual-stack", "--redirect-dns", "-c", Bridge), nil)
	do(t, err)
	return l, func() {
		t.Helper()
		do(t, l.StartSidecar(t.Context(), sidecar.Config{IPv6: rules.DualStack, DNS: rules.DNS}))
	}
}

// say waits until a container has printed a line that has all words, n times.
func say(t *testing.T, c *container.Process, n int, words ...string) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(probeInterval) {
		have := 0
		for line := range strings.Lines(c.Output()) {
			all := true
			for _, w := range words {
				all = all && strings.Contains(line, w)
			}
			if all {
				have++
			}
		}
		if have >= n {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%d lines with %q, want %d:\n%s", have, words, n, c.Output())
		}
	}
}

func TestFound(t *testing.T) {
	for name, o := range map[string]Options{
		"user-defined primary network": {PodLink: "ovn-udn1"},
		"hashed name":                  {PodLink: "pod37a8eec1ce1"},
		"ordinal name":                 {PodLink: "net1", VMNetwork4: network4},
		"VM network":                   {VMNetwork4: network4, VMNetwork6: network6},
	} {
		for _, mode := range owningModes {
			t.Run(name+"/"+string(mode), func(t *testing.T) {
				t.Parallel()
				l, startProxy := foundLab(t, o)
				p := watchedPlan(mode)
				watcher := startWatcher(t, l, p)
				var relay *container.Process
				if p.Proxy != nil {
					relay = startRelay(t, l, p)
				}
				startProxy()
				// A secondary network of bridge binding is not the guest's way into the mesh.
				do(t, l.addOtherBridge("k6t-16477688c0e", "169.254.75.11/32"))
				do(t, l.KubeVirt(t.Context(), "v1.9.0-istio-noports-dual"))
				say(t, watcher, 1, "interface "+l.BridgeName()+" present true")
				if relay != nil {
					say(t, relay, 1, "found the guest", l.BridgeName(), l.guests()[0].Addr().String(), l.guests()[1].Addr().String())
				}
				do(t, l.StartGuest(t.Context()))
				wantHere(t, l, member)
				if code, text := l.get(t, p.WatchPort, "/readyz"); code != http.StatusOK {
					t.Errorf("/readyz: %d %s", code, text)
				}
			})
		}
	}
}

// TestNotFound is TestFound with rules that are written once: nothing finds the guest.
func TestNotFound(t *testing.T) {
	for name, c := range map[string]struct {
		Options
		egress, hairpin string
	}{
		// Istio takes it for a connection from outside.
		"user-defined primary network": {Options{PodLink: "ovn-udn1"}, "fails inbound", "ok inbound saw 10.0.2.1"},
		// The guard takes it for somebody else's.
		"VM network": {Options{VMNetwork4: network4, VMNetwork6: network6}, "fails", "fails"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l, startProxy := foundLab(t, c.Options)
			p := watchedPlan(plan.Rules)
			p.WatchPort = 0
			startMeshVirt(t, l, p)
			startProxy()
			do(t, l.KubeVirt(t.Context(), "v1.9.0-istio-noports-dual"), l.StartGuest(t.Context()))
			flows, _ := l.here(nil)
			for _, f := range flows {
				want := map[string]string{"egress-tcp4": c.egress, "egress-tcp6": c.egress, "hairpin": c.hairpin}[f.Name]
				if want == "" {
					continue
				}
				if got := l.Check(t.Context(), f).Outcome(); got != want {
					t.Errorf("%s: %s, want %s", f.Name, got, want)
				}
			}
		})
	}
}

// TestFoundAgain has the bridge go and come back, and the watcher start again with it there.
func TestFoundAgain(t *testing.T) {
	t.Parallel()
	l, startProxy := foundLab(t, Options{PodLink: "ovn-udn1", VMNetwork4: network4, VMNetwork6: network6})
	p := watchedPlan(plan.Rules)
	watcher := startWatcher(t, l, p)
	startProxy()
	do(t, l.KubeVirt(t.Context(), "v1.9.0-istio-noports-dual"), l.StartGuest(t.Context()))
	complete := "interface k6t-ovn-udn1 present true"
	say(t, watcher, 1, complete)
	wantHere(t, l, member)

	do(t, l.Namespace().Do(func() error {
		return netlink.LinkDel(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: l.BridgeName()}})
	}))
	table, err := l.RunInPod(t.Context(), "", "nft", "list", "table", "inet", "meshvirt")
	do(t, err)
	if !strings.Contains(table, "k6t-ovn-udn1") || !strings.Contains(table, "10.11.12.2") {
		t.Errorf("the rules went with the bridge:\n%s", table)
	}
	before := strings.Count(watcher.Output(), complete)
	do(t, l.Namespace().Do(l.addBridge), l.Namespace().Sysctl("ipv4/conf/"+l.BridgeName()+"/route_localnet", "1"),
		l.Namespace().Do(func() error { return vm.Plug(Tap, l.BridgeName()) }))
	say(t, watcher, before+1, complete)
	wantHere(t, l, member)

	do(t, watcher.Stop(t.Context(), 10*time.Second))
	_, err = l.RunInPod(t.Context(), "", "nft", "delete", "table", "inet", "meshvirt")
	do(t, err)
	if got := l.Check(t.Context(), FlowNamed("egress-tcp4")).Outcome(); got != "fails inbound" {
		t.Errorf("without a table: %s, want it to fail", got)
	}
	say(t, startWatcher(t, l, p), 1, complete)
	wantHere(t, l, member)
}

// TestContradicted: a watcher or a relay that finds something else than what the plan states is not ready,
// and says why.
func TestContradicted(t *testing.T) {
	certain := func(p *plan.Plan) { p.Assumed = plan.Assumed{} }
	for name, c := range map[string]struct {
		Options
		mode   plan.Mode
		change func(*plan.Plan)
		other  string // the gateway's address of another bridge
		what   string
		words  []string
	}{
		"two candidates": {Options{}, plan.NATProxy, func(*plan.Plan) {}, "10.99.0.1/24", "bridges",
			[]string{"found 2 bridges", "k6t-eth0 (guest 10.0.2.2, fd10:0:2::2)", "k6t-other (guest 10.99.0.2)", "meshvirt.io/interfaces"}},
		"another address": {Options{VMNetwork4: network4}, plan.NATProxy, certain, "", "guest",
			[]string{"found the guest at 10.11.12.2", "planned 10.0.2.2", "set meshvirt.io/guest-addresses: 10.11.12.2"}},
		"another interface": {Options{PodLink: "ovn-udn1"}, plan.NATProxy, certain, "", "interface",
			[]string{"found the guest behind k6t-ovn-udn1", "planned k6t-eth0", "set meshvirt.io/interfaces: k6t-ovn-udn1"}},
		"the mesh's own reroute": {Options{PodLink: "ovn-udn1"}, plan.Native, func(*plan.Plan) {}, "", "mesh",
			[]string{"found the guest behind k6t-ovn-udn1", "told of k6t-eth0", "in mode native"}},
		"rules written once": {Options{PodLink: "ovn-udn1"}, plan.NATProxy, func(p *plan.Plan) { p.WatchPort = 0 }, "", "interface",
			[]string{"found the guest behind k6t-ovn-udn1", "assumed k6t-eth0", `meshvirt.io/watch: "true"`}},
		"address written once": {Options{VMNetwork4: network4}, plan.NATProxy, func(p *plan.Plan) { p.WatchPort = 0 }, "", "guest",
			[]string{"found the guest at 10.11.12.2", "assumed 10.0.2.2", `meshvirt.io/watch: "true"`}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l, startProxy := foundLab(t, c.Options)
			p := watchedPlan(c.mode)
			c.change(&p)
			type told struct {
				*container.Process
				port   uint16
				metric string
			}
			var all []told
			if p.WatchPort != 0 {
				all = append(all, told{startWatcher(t, l, p), p.WatchPort, "meshvirt_rules_contradicted"})
			} else {
				rules, err := templates.Rules(p, templates.Image{Name: templates.DefaultImage}, false)
				do(t, err, l.RunInit(t.Context(), rules))
			}
			if p.Proxy != nil {
				all = append(all, told{startRelay(t, l, p), p.Proxy.StatusPort, "meshvirt_proxy_contradicted"})
			}
			startProxy()
			is := func(s told, want bool) {
				t.Helper()
				code, text := l.get(t, s.port, "/readyz")
				for _, w := range c.words {
					if (code == http.StatusServiceUnavailable && strings.Contains(text, w)) != want {
						t.Errorf("%s: /readyz says %d %q, want it to say %q: %t", s.metric, code, text, w, want)
					}
				}
				_, text = l.get(t, s.port, "/metrics")
				if value := map[bool]int{true: 1}[want]; !strings.Contains(text, fmt.Sprintf("%s{what=%q} %d\n", s.metric, c.what, value)) {
					t.Errorf("want %s{what=%q} %d:\n%s", s.metric, c.what, value, text)
				}
			}
			for _, s := range all {
				is(s, false)
			}
			if c.other != "" {
				do(t, l.addOtherBridge("k6t-other", c.other))
			}
			do(t, l.KubeVirt(t.Context(), "v1.9.0-istio-noports-dual"))
			for _, s := range all {
				words := []string{"the pod contradicts the plan"}
				for _, w := range c.words {
					words = append(words, strings.ReplaceAll(w, `"`, ""))
				}
				say(t, s.Process, 1, words[:2]...)
				is(s, true)
			}
			if c.other != "" { // it goes: all is well again
				do(t, l.Namespace().Do(func() error { return netlink.LinkDel(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "k6t-other"}}) }))
				for _, s := range all {
					for end := time.Now().Add(20 * time.Second); ; time.Sleep(probeInterval) {
						if code, _ := l.get(t, s.port, "/readyz"); code == http.StatusOK {
							break
						} else if time.Now().After(end) {
							t.Fatalf("%s: still not ready", s.metric)
						}
					}
					is(s, false)
				}
			}
		})
	}
}

// addOtherBridge makes a bridge that is not the guest's, as KubeVirt names them.
func (l *Lab) addOtherBridge(name, addr string) error {
	return l.Namespace().Do(func() error {
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}}); err != nil {
			return err
		}
		return configure(name, []string{addr}, nil)
	})
}

// get asks a status server from a process of the pod, at an address that neither Istio nor KubeVirt in its Istio mode translates.
func (l *Lab) get(t *testing.T, port uint16, path string) (code int, text string) {
	t.Helper()
	do(t, l.Namespace().Do(func() error {
		c, err := net.DialTimeout("tcp", at(PodIP6, port).String(), 5*time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(10 * time.Second))
		fmt.Fprintf(c, "GET %s HTTP/1.0\r\n\r\n", path)
		r, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			return err
		}
		b, err := io.ReadAll(r.Body)
		code, text = r.StatusCode, string(b)
		return err
	}))
	return code, text
}

// TestFoundAsAdmitted runs what the webhook gives a recorded pod, of which the VMI is not known, in a namespace for
// user-defined primary networks.
func TestFoundAsAdmitted(t *testing.T) {
	t.Parallel()
	root, err := tools.Root()
	do(t, err)
	b, err := os.ReadFile(filepath.Join(root, "test/corpus/pods/v1.9.0/masquerade-istio-ports/injected-1.31.0-rc.0-native.yaml"))
	do(t, err)
	var pod corev1.Pod
	do(t, yaml.Unmarshal(b, &pod))
	facts := mutate.Facts{NamespaceLabels: map[string]string{"k8s.ovn.org/primary-user-defined-network": ""}}
	adapted, report, errs := mutate.Apply(&pod, facts, mutate.Config{Image: templates.Image{Name: "example.com/dataplane:test"}})
	if report.Mode != plan.Rules || report.Plan.WatchPort == 0 || len(errs) > 0 {
		t.Fatalf("report %s, errors %v", report, errs)
	}
	l := newLab(t, Options{Image: dataPlane(t), Pod: adapted, PodLink: "ovn-udn1", VMNetwork4: network4})
	var watcher *container.Process
	for _, c := range adapted.Spec.InitContainers {
		switch c.Name {
		case "istio-init":
			_, err := l.IstioInitContainer(t.Context(), NFT, c)
			do(t, err)
		case templates.RulesName:
			watcher, err = l.Start(c)
			do(t, err, l.WaitReady(t.Context(), c, c.StartupProbe))
		}
	}
	do(t, l.StartSidecar(t.Context(), sidecar.Config{}), l.KubeVirt(t.Context(), "v1.9.0-istio-ports-22-80-ipv4"))
	say(t, watcher, 1, "interface k6t-ovn-udn1 present true")
	do(t, l.StartGuest(t.Context()))
	for name, want := range map[string]string{
		"egress-tcp4": "ok outbound saw 10.244.1.17", "ingress-tcp4": "ok inbound saw 10.11.12.1", "udp-out4": "ok saw 10.244.1.17",
	} {
		if r := l.Check(t.Context(), FlowNamed(name)); r.Outcome() != want {
			t.Errorf("%s\n got outcome %q\nwant %q", r, r.Outcome(), want)
		}
	}
}

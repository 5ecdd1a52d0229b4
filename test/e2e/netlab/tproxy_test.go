package netlab

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/templates"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/container"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/sidecar"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/vm"
)

// startWatcher runs the container that writes rules as mode tproxy has it: a native sidecar.
func startWatcher(t *testing.T, l *Lab, p plan.Plan) *container.Process {
	t.Helper()
	c, err := templates.Rules(p, templates.Image{Name: templates.DefaultImage}, false)
	do(t, err)
	always := corev1.ContainerRestartPolicyAlways
	c.Args, c.RestartPolicy = []string{"-watch"}, &always
	c.StartupProbe = &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/readyz", Port: intstr.FromInt32(int32(p.WatchPort))}}, TimeoutSeconds: 2}
	watcher, err := l.Start(c)
	do(t, err, l.WaitReady(t.Context(), c, c.StartupProbe))
	return watcher
}

// tproxyLab is a pod of mode tproxy before KubeVirt has made the bridge.
func tproxyLab(t *testing.T) (l *Lab, watcher, relay *container.Process) {
	t.Helper()
	l = newLab(t, Options{DualStack: true, Image: dataPlane(t)})
	startIstio(t, l, "1.29.6", NFT, "--dual-stack", "--redirect-dns", "-c", Bridge)
	p := handMade(plan.TProxy)
	return l, startWatcher(t, l, p), startRelay(t, l, p)
}

// TestTProxySysctls has every value of the settings that people turn for TPROXY.
func TestTProxySysctls(t *testing.T) {
	for _, bridgeNF := range []string{"0", "1"} {
		for _, rpFilter := range []string{"0", "1"} {
			t.Run("bridge-nf "+bridgeNF+", rp_filter "+rpFilter, func(t *testing.T) {
				t.Parallel()
				l, _, _ := tproxyLab(t)
				do(t,
					l.Namespace().Sysctl("bridge/bridge-nf-call-iptables", bridgeNF),
					l.Namespace().Sysctl("bridge/bridge-nf-call-ip6tables", bridgeNF),
					l.Namespace().Sysctl("ipv4/conf/all/rp_filter", rpFilter),
					l.Namespace().Sysctl("ipv4/conf/default/rp_filter", rpFilter),
					l.KubeVirt(t.Context(), "v1.9.0-istio-noports-dual"), l.StartGuest(t.Context()))
				wantOutcomes(t, l, member)
			})
		}
	}
}

// egressFails is what flows of the guest give if nothing takes its connections: none gets past the mesh.
func egressFails(outcomes map[string]string) map[string]string {
	out := with(outcomes, nil)
	for name := range out {
		if strings.HasPrefix(name, "egress-") && !strings.HasPrefix(name, "egress-excluded") || name == "dns-tcp" {
			out[name] = "fails"
		}
	}
	return out
}

// TestTProxyWrittenTooEarly has no watcher when the bridge comes: the table alone, as an init
// container would leave it, is in the wrong order, and the policy route does not help. A watcher does.
func TestTProxyWrittenTooEarly(t *testing.T) {
	t.Parallel()
	l, watcher, _ := tproxyLab(t)
	do(t, watcher.Stop(t.Context(), 10*time.Second), l.KubeVirt(t.Context(), "v1.9.0-istio-noports-dual"), l.StartGuest(t.Context()))
	wantOutcomes(t, l, egressFails(member))
	for _, family := range []string{"-4", "-6"} {
		for _, args := range []string{"rule add fwmark 0x20000/0x20000 lookup 15101 priority 15101", "route add local default dev lo table 15101"} {
			_, err := l.RunInPod(t.Context(), "", append([]string{"ip", family}, strings.Fields(args)...)...)
			do(t, err)
		}
	}
	wantOutcomes(t, l, egressFails(member))
	// Delivered in the pod without the relay's socket, it would reach whoever listens on every address there.
	health := Flow{Name: "the pod's port at the peer's address", From: Guest, Network: "tcp", To: at(PeerIP6, sidecar.Health), Kind: "http", Timeout: attackTimeout}
	if r := l.Check(t.Context(), health); r.Outcome() != "fails" {
		t.Errorf("%s: %s, want it to fail", health.Name, r)
	}
	startWatcher(t, l, handMade(plan.TProxy))
	wantOutcomes(t, l, member)
}

// TestTProxyBridgeAgain deletes the bridge and makes another one of the same name.
func TestTProxyBridgeAgain(t *testing.T) {
	t.Parallel()
	l, watcher, _ := tproxyLab(t)
	do(t, l.KubeVirt(t.Context(), "v1.9.0-istio-noports-dual"), l.StartGuest(t.Context()))
	wantOutcomes(t, l, member)

	const complete = "interface k6t-eth0 present true\n"
	before := strings.Count(watcher.Output(), complete)
	do(t, l.Namespace().Do(func() error {
		if err := netlink.LinkDel(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: Bridge}}); err != nil {
			return err
		}
		return l.addBridge()
	}), l.Namespace().Sysctl("ipv4/conf/"+Bridge+"/route_localnet", "1"), l.Namespace().Do(func() error { return vm.Plug(Tap, Bridge) }))
	for end := time.Now().Add(20 * time.Second); strings.Count(watcher.Output(), complete) == before; time.Sleep(probeInterval) {
		if time.Now().After(end) {
			t.Fatalf("nothing was written for the new bridge:\n%s", watcher.Output())
		}
	}
	wantOutcomes(t, l, member)
}

// TestTProxyWithoutRelay: when the relay has ended, nothing of the guest's gets past the mesh.
func TestTProxyWithoutRelay(t *testing.T) {
	t.Parallel()
	l, _, relay := tproxyLab(t)
	do(t, l.KubeVirt(t.Context(), "v1.9.0-istio-noports-dual"), l.StartGuest(t.Context()))
	if got := l.Check(t.Context(), FlowNamed("egress-tcp4")).Outcome(); got != member["egress-tcp4"] {
		t.Fatalf("with the relay: %s", got)
	}
	do(t, relay.Stop(t.Context(), 20*time.Second))
	for name, want := range map[string]string{
		"egress-tcp4": "fails", "egress-tcp6": "fails", "egress-excluded-port": member["egress-excluded-port"], "udp-out4": member["udp-out4"],
	} {
		if got := l.Check(t.Context(), FlowNamed(name)).Outcome(); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
}

// TestTProxyCapabilities: the watcher keeps NET_ADMIN alone, and the relay, once it listens, nothing.
func TestTProxyCapabilities(t *testing.T) {
	t.Parallel()
	_, watcher, relay := tproxyLab(t)
	for name, c := range map[string]struct {
		process *container.Process
		want    string
	}{"watcher": {watcher, "0000000000001000"}, "relay": {relay, "0000000000000000"}} {
		tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", c.process.Pid()))
		do(t, err)
		if len(tasks) == 0 {
			t.Errorf("%s: no threads", name)
		}
		for _, task := range tasks {
			b, err := os.ReadFile(task)
			if os.IsNotExist(err) {
				continue // ended meanwhile
			}
			do(t, err)
			got := map[string]string{}
			for line := range strings.Lines(string(b)) {
				if key, value, _ := strings.Cut(line, ":"); key == "CapPrm" || key == "CapEff" || key == "CapAmb" || key == "CapInh" {
					got[key] = strings.TrimSpace(value)
				}
			}
			want := map[string]string{"CapPrm": c.want, "CapEff": c.want, "CapInh": "0000000000000000", "CapAmb": "0000000000000000"}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s, %s (-want +got)\n%s", name, task, diff)
			}
		}
	}
}

// TestTProxyIPv4 has a pod without IPv6, where neither rules nor routes of it can be made.
func TestTProxyIPv4(t *testing.T) {
	t.Parallel()
	l := newLab(t, Options{Image: dataPlane(t)})
	do(t, l.Namespace().Sysctl("ipv6/conf/all/disable_ipv6", "1"))
	startIstio(t, l, "1.29.6", NFT, "--redirect-dns", "-c", Bridge)
	p := handMade(plan.TProxy)
	p.Mesh.DualStack, p.Guest.IPv6 = false, netip.Addr{}
	startMeshVirt(t, l, p)
	do(t, l.KubeVirt(t.Context(), "v1.9.0-istio-noports-dual"), l.StartGuest(t.Context()))
	want := with(member, nil)
	for _, f := range Flows {
		if f.IPv6() {
			delete(want, f.Name)
		}
	}
	wantOutcomes(t, l, want)
}

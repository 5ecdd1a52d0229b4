package netlab

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/agent"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/istio"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/vm"
)

// kubevirtModes are recordings of the rules of a VM that lists no ports.
var kubevirtModes = map[string]string{"plain mode": "v1.9.0-noistio-noports-dual", "istio mode": "v1.9.0-istio-noports-dual"}

// attackLab is a pod with a guest in a mode, complete.
func attackLab(t *testing.T, mode plan.Mode, kubevirt string, guest *vm.VM) *Lab {
	t.Helper()
	l := newLab(t, Options{DualStack: true, Image: dataPlane(t), VM: guest})
	p := handMade(mode)
	switch mode {
	case plan.Ambient:
		p = ambientPlan()
		startAmbient(t, l, NFT, istio.AmbientOptions{DualStack: true})
	case plan.Native:
		startIstio(t, l, "1.29.6", NFT, "--dual-stack", "--redirect-dns", "-k", Bridge)
	default:
		startIstio(t, l, "1.29.6", NFT, "--dual-stack", "--redirect-dns", "-c", Bridge)
	}
	startMeshVirt(t, l, p)
	do(t, l.KubeVirt(t.Context(), kubevirt), l.StartGuest(t.Context()))
	return l
}

// attackModes are all with a guest whose packets enter the pod.
var attackModes = []plan.Mode{plan.Native, plan.Rules, plan.NATProxy, plan.TProxy, plan.Ambient}

// TestAttacks makes every attempt of the table, and every call, in every mode, and once more without the guard.
func TestAttacks(t *testing.T) {
	for _, mode := range attackModes {
		for name, kubevirt := range kubevirtModes {
			t.Run(string(mode)+"/"+name, func(t *testing.T) {
				t.Parallel()
				attack(t, attackLab(t, mode, kubevirt, nil), mode, name)
			})
		}
	}
	t.Run("rules/without bridge netfilter", func(t *testing.T) {
		t.Parallel()
		l := attackLab(t, plan.Rules, kubevirtModes["plain mode"], nil)
		do(t, l.Namespace().Sysctl("bridge/bridge-nf-call-iptables", "0"), l.Namespace().Sysctl("bridge/bridge-nf-call-ip6tables", "0"))
		attack(t, l, plan.Rules, "plain mode")
	})
}

// TestAttacksVirtualMachine has the real guest.
func TestAttacksVirtualMachine(t *testing.T) {
	t.Parallel()
	attack(t, attackLab(t, plan.NATProxy, kubevirtModes["istio mode"], useVM(t)), plan.NATProxy, "istio mode")
}

func attack(t *testing.T, l *Lab, mode plan.Mode, kubevirt string) {
	t.Helper()
	w := newWitness(t, l)
	w.after(t.Context(), l, 60000) // neighbours are known from now on
	before := routes(t, l)

	want, got := map[string]string{}, w.attempts(t.Context(), l, mode, 1)
	eachAttempt(mode, func(name string, k kind, a attempt) { want[name] = k.becomes.seen(a.v6) })
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("where attempts were seen (-want +got)\n%s", diff)
	}
	if diff := cmp.Diff(before, routes(t, l)); diff != "" {
		t.Errorf("the pod's routes (-before +after)\n%s", diff)
	}
	var dial map[netip.AddrPort]netip.AddrPort
	if l.guest != nil { // a machine has no programs that could disguise
		dial = disguise(t, l, calls(mode))
		if answered, asked := converse(t, l, dial); len(answered)+len(asked) > 0 {
			t.Errorf("answered: %v; the mesh's proxy was asked as: %v; want nobody", answered, asked)
		}
	}
	serves(t, l)
	if n := len(want); n < 40 {
		t.Errorf("%d attempts, want at least 40", n)
	}

	// Nothing of what is lost may be lost for another reason than the guard's, but for those that are in vain.
	dropGuard(t, l)
	bare := w.attempts(t.Context(), l, mode, 2)
	eachAttempt(mode, func(name string, k kind, a attempt) {
		if k.becomes != lost {
			return
		}
		if led := bare[name] != ""; led == (a.vain != "") {
			t.Errorf("without the guard: %s: seen %q, in vain %q", name, bare[name], a.vain)
		}
	})
	if l.guest == nil {
		return
	}
	for _, want := range answersBare(mode, kubevirt) {
		if d, err := call(t, l, dial[netip.MustParseAddrPort(want)], answerTimeout); err != nil || !d.OK {
			t.Errorf("without the guard: %s is not answered: %s, %v", want, d.Err, err)
		}
	}
}

// eachAttempt calls f for what is made in a mode.
func eachAttempt(mode plan.Mode, f func(name string, k kind, a attempt)) {
	for _, k := range kinds() {
		for _, a := range k.attempts {
			if a.only == nil || slices.Contains(a.only, mode) {
				f(k.what+": "+a.name, k, a)
			}
		}
	}
}

// maxAttempts is room for one run's ports.
const maxAttempts = 1000

// attempts makes all attempts and tells where each was seen.
func (w *witness) attempts(ctx context.Context, l *Lab, mode plan.Mode, run int) map[string]string {
	w.t.Helper()
	asks4, asks6 := ask(w.t, l, PeerIP4), ask(w.t, l, PeerIP6)
	names, tags := []string{}, map[string]string{}
	var all []agent.Frame
	eachAttempt(mode, func(name string, _ kind, a attempt) {
		if _, twice := tags[name]; twice {
			w.t.Errorf("two attempts are named %q", name)
		}
		i := len(names)
		names, tags[name] = append(names, name), tag(run, i)
		// Ports of their own: what belongs to a connection of an earlier run would pass.
		all = append(all, a.make(env{tag: tags[name], port: uint16(20000 + maxAttempts*run + i), asks4: asks4, asks6: asks6})...)
	})
	if len(names) > maxAttempts {
		w.t.Fatalf("%d attempts, want %d at most", len(names), maxAttempts)
	}
	w.after(ctx, l, 60000+run, all...)
	seen := map[string]string{}
	for _, name := range names {
		seen[name] = w.where(tags[name])
	}
	return seen
}

// ask has a process of the pod ask the peer over UDP, so that an answer is expected, and gives its port.
func ask(t *testing.T, l *Lab, peer netip.Addr) (port uint16) {
	t.Helper()
	do(t, l.pod.Do(func() error {
		c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(at(peer, UDPPort)))
		if err != nil {
			return err
		}
		t.Cleanup(func() { c.Close() })
		port = c.LocalAddr().(*net.UDPAddr).AddrPort().Port()
		_, err = c.Write([]byte("?"))
		return err
	}))
	return port
}

// dropGuard empties the guard's chains.
func dropGuard(t *testing.T, l *Lab) {
	t.Helper()
	for _, chain := range []string{"guard_addresses", "guard_pod"} {
		_, err := l.RunInPod(t.Context(), "", "nft", "flush", "chain", "inet", "meshvirt", chain)
		do(t, err)
	}
}

// routes are the pod's, but for those that come with addresses.
func routes(t *testing.T, l *Lab) string {
	t.Helper()
	var all strings.Builder
	for _, family := range []string{"-4", "-6"} {
		s, err := l.RunInPod(t.Context(), "", "ip", family, "route", "show", "table", "all")
		do(t, err)
		for line := range strings.Lines(s) {
			if !strings.Contains(line, "proto kernel") {
				all.WriteString(line)
			}
		}
	}
	return all.String()
}

// TestGuardNeeds deletes one rule of the guard after the other, and some attempt shows it every time, but for rules that
// only save time. The rules for captured DNS matter where the mesh takes all of it, as an ambient one does.
func TestGuardNeeds(t *testing.T) {
	t.Parallel()
	l := attackLab(t, plan.Ambient, kubevirtModes["plain mode"], nil)
	w := newWitness(t, l)
	w.after(t.Context(), l, 60000)
	want := w.attempts(t.Context(), l, plan.Ambient, 1)
	nft := func(input string, args ...string) string {
		t.Helper()
		s, err := l.RunInPod(t.Context(), input, append([]string{"nft"}, args...)...)
		do(t, err)
		return s
	}
	whole := nft("", "list", "table", "inet", "meshvirt")
	rules := guardRules(nft("", "-a", "list", "table", "inet", "meshvirt"))
	if len(rules) < 15 {
		t.Fatalf("the guard has rules %v, want at least 15", rules)
	}
	for i := range rules {
		r := guardRules(nft("", "-a", "list", "table", "inet", "meshvirt"))[i]
		nft("", "delete", "rule", "inet", "meshvirt", r.chain, "handle", r.handle)
		diff := cmp.Diff(want, w.attempts(t.Context(), l, plan.Ambient, 2+i))
		switch speed := strings.Contains(r.text, "soon done"); {
		case speed && diff != "":
			t.Errorf("the rule in chain %s does more than to save time: %s (-with +without)\n%s", r.chain, r.text, diff)
		case !speed && diff == "":
			t.Errorf("no attempt needs the rule in chain %s: %s", r.chain, r.text)
		}
		nft("delete table inet meshvirt\n"+whole, "-f", "-")
	}
}

type guardRule struct{ chain, handle, text string }

// guardRules finds the guard's in a listing with handles.
func guardRules(listing string) (all []guardRule) {
	chain := ""
	for line := range strings.Lines(listing) {
		text, handle, _ := strings.Cut(strings.TrimSpace(line), " # handle ")
		if name, ok := strings.CutPrefix(text, "chain "); ok {
			chain = strings.TrimSuffix(name, " {")
		}
		if slices.Contains([]string{"guard_addresses", "guest_addresses", "guard_pod", "guest_connections", "guest_to_pod"}, chain) && strings.Contains(text, " comment ") {
			all = append(all, guardRule{chain, handle, text})
		}
	}
	return all
}

// TestLinkLocal has a service of the node's that is at a link-local address, as clouds' metadata is. A guest
// without a mesh reaches it, as the pod does; with one it goes as the mesh has it, and never past the mesh.
// The relay refuses it.
func TestLinkLocal(t *testing.T) {
	tcp := Flow{Name: "metadata", From: Guest, Network: "tcp", To: at(metadata, HTTPPort), Kind: agent.Echo}
	udp := Flow{Name: "metadata over UDP", From: Guest, Network: "udp", To: at(metadata, UDPPort)}
	const past = "ok saw 10.244.1.17"
	for mode, want := range map[plan.Mode]string{
		plan.Off: past, plan.Native: "ok outbound saw 10.244.1.17", plan.Rules: "ok outbound saw 10.244.1.17",
		plan.NATProxy: "fails", plan.TProxy: "fails", plan.Ambient: "ok outbound saw 10.244.1.17",
	} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			var l *Lab
			if mode == plan.Off {
				l = newLab(t, Options{DualStack: true})
				do(t, l.KubeVirt(t.Context(), kubevirtModes["plain mode"]), l.StartGuest(t.Context()))
			} else {
				l = attackLab(t, mode, kubevirtModes["plain mode"], nil)
			}
			do(t, l.peer.Do(func() error { return configure("lo", []string{metadata.String() + "/32"}, nil) }),
				l.node.Do(func() error { return configure("peer", nil, []string{metadata.String() + "/32 " + PeerIP4.String()}) }),
				l.Peer.Listen(t.Context(), agent.Listen{Network: "udp", Addr: udp.To, Kind: agent.Echo}))
			for f, want := range map[Flow]string{tcp: want, udp: past} {
				if r := l.Check(t.Context(), f); r.Outcome() != want {
					t.Errorf("%s: outcome %q, want %q", r, r.Outcome(), want)
				}
			}
		})
	}
}

package netlab

import (
	"context"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/meshvirt/meshvirt/test/e2e/netlab/sidecar"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/vm"
	"github.com/meshvirt/meshvirt/test/lab"
)

// machine is one virtual machine for all tests: the guest of one pod after the other.
var machine struct {
	sync.Mutex
	vm *vm.VM
}

// TestMain lets more tests run at a time than there are processors: they spend their time waiting for
// what does not answer.
func TestMain(m *testing.M) {
	flag.Parse()
	if err := flag.Set("test.parallel", "4"); err != nil {
		panic(err)
	}
	code := m.Run()
	if machine.vm != nil {
		machine.vm.Close()
	}
	os.Exit(code)
}

// useVM gives the machine to a test until its end.
func useVM(t *testing.T) *vm.VM {
	t.Helper()
	lab.NeedRoot(t)
	machine.Lock()
	t.Cleanup(machine.Unlock)
	if machine.vm == nil {
		program, err := Build(t.Context(), "test/e2e/netlab/labnode")
		if err != nil {
			t.Fatal(err)
		}
		// The machine outlives the test's context.
		if machine.vm, err = vm.Start(context.Background(), program); err != nil {
			t.Fatal(err)
		}
	}
	return machine.vm
}

func newLab(t *testing.T, o Options) *Lab {
	t.Helper()
	lab.NeedRoot(t)
	l, err := New(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// do fails the test at the first error.
func do(t *testing.T, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// wantOutcomes checks all flows and compares their outcomes with those wanted.
func wantOutcomes(t *testing.T, l *Lab, want map[string]string, more ...Flow) {
	t.Helper()
	got := map[string]string{}
	for name, r := range l.CheckAll(t.Context(), append(slices.Clone(Flows), more...)) {
		got[name] = r.Outcome()
		if got[name] != want[name] {
			t.Log(r)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("outcomes (-want +got)\n%s", diff)
	}
}

func with(base map[string]string, changes map[string]string) map[string]string {
	m := map[string]string{}
	for _, part := range []map[string]string{base, changes} {
		for k, v := range part {
			m[k] = v
		}
	}
	return m
}

// noMesh is what a virtual machine has with KubeVirt alone.
var noMesh = map[string]string{
	"egress-tcp4":          "ok saw 10.244.1.17",
	"egress-tcp6":          "ok saw fd00:10:244:1::11",
	"egress-half4":         "ok saw 10.244.1.17",
	"egress-banner4":       "ok saw 10.244.1.17",
	"egress-service4":      "ok saw 10.244.1.17",
	"egress-service6":      "ok saw fd00:10:244:1::11",
	"egress-excluded-cidr": "ok saw 10.244.1.17",
	"egress-excluded-port": "ok saw 10.244.1.17",
	"ingress-tcp4":         "ok saw 10.244.2.20",
	"ingress-tcp6":         "ok saw fd00:10:244:2::20",
	"ingress-half4":        "ok saw 10.244.2.20",
	"ingress-ssh4":         "ok saw 10.244.2.20",
	"ingress-ssh6":         "ok saw fd00:10:244:2::20",
	"probe-guest":          "ok saw 10.244.1.1",
	"probe-sidecar":        "fails", // there is none
	"udp-out4":             "ok saw 10.244.1.17",
	"udp-out6":             "ok saw fd00:10:244:1::11",
	"udp-in4":              "ok saw 10.244.2.20",
	"udp-in6":              "ok saw fd00:10:244:2::20",
	"dns-udp":              "ok 192.0.2.53",
	"dns-tcp":              "ok 192.0.2.53",
	"icmp4":                "ok",
	"icmp6":                "ok",
	"pod-egress":           "ok saw 10.244.1.17",
	"pod-self":             "fails",     // the guest is not at the pod's address for the pod itself,
	"hairpin":              "fails",     // nor for itself
	"attack-loopback":      "fails rst", // the packet reached the pod's loopback device, where nobody listened
	"attack-gateway":       "fails",
	"attack-spoof":         "ok saw 10.0.2.77", // KubeVirt masquerades the guest's own address only
}

// kubevirtInterfaces is what Istio's own option for virtual machines gives today, on a dual-stack
// mesh, with KubeVirt in its Istio mode and no ports listed.
var kubevirtInterfaces = with(noMesh, map[string]string{
	"egress-tcp4":          "ok outbound saw 10.244.1.17",
	"egress-tcp6":          "ok outbound saw fd00:10:244:1::11",
	"egress-half4":         "ok outbound saw 10.244.1.17",
	"egress-banner4":       "ok outbound saw 10.244.1.17",
	"egress-service4":      "ok outbound saw 10.244.1.17",
	"egress-service6":      "ok outbound saw fd00:10:244:1::11",
	"egress-excluded-cidr": "ok outbound saw 10.244.1.17",
	"egress-excluded-port": "ok outbound saw 10.244.1.17",
	"ingress-tcp4":         "ok inbound saw 10.0.2.1",
	"ingress-tcp6":         "fails inbound", // KubeVirt redirects Envoy's connection to the guest in IPv4 only
	"ingress-half4":        "ok inbound saw 10.0.2.1",
	"probe-guest":          "ok inbound saw 10.0.2.1",
	"probe-sidecar":        "ok serving",
	"udp-in4":              "fails", // KubeVirt leaves inbound traffic to Istio, and Istio takes only TCP
	"udp-in6":              "fails",
	"dns-tcp":              "ok outbound 192.0.2.53",
	"pod-egress":           "ok outbound saw 10.244.1.17",
	"pod-self":             "ok saw 10.244.1.17",
	"hairpin":              "ok outbound saw 10.244.1.17",
	"attack-loopback":      "ok syn-ack", // the sidecar would dial its own admin port
	"attack-gateway":       "ok outbound inbound serving",
})

// istioArgs are istio-init's by the injection template, and more.
func istioArgs(more ...string) []string {
	args := []string{"istio-iptables", "-p", "15001", "-z", "15006", "-u", "1337", "-m", "REDIRECT", "-i", "*", "-x", "", "-b", "*", "-d", "15090,15021,15020"}
	return append(args, more...)
}

// startIstio does what Istio's containers do in the pod.
func startIstio(t *testing.T, l *Lab, version string, backend Backend, args ...string) {
	t.Helper()
	rules, err := l.IstioInit(t.Context(), version, backend, istioArgs(args...), nil)
	do(t, err, l.StartSidecar(t.Context(), sidecar.Config{IPv6: rules.DualStack, DNS: rules.DNS, Transparent: rules.TProxy}))
}

func TestNoMesh(t *testing.T) {
	for _, recording := range []string{"v1.9.0-noistio-noports-dual", "v1.0.1-noistio-noports-dual"} {
		t.Run(recording, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, Options{DualStack: true})
			do(t, l.KubeVirt(t.Context(), recording), l.StartGuest(t.Context()))
			wantOutcomes(t, l, noMesh)
		})
	}
}

// TestVirtualMachine has the real guest in two pods, one after the other.
func TestVirtualMachine(t *testing.T) {
	t.Parallel()
	guest := useVM(t)
	t.Run("no mesh", func(t *testing.T) {
		l := newLab(t, Options{DualStack: true, VM: guest})
		do(t, l.KubeVirt(t.Context(), "v1.9.0-noistio-noports-dual"), l.StartGuest(t.Context()))
		wantOutcomes(t, l, noMesh)
		kernel, err := l.Guest.Exec(t.Context(), time.Second, "uname", "-v")
		do(t, err)
		if !strings.Contains(kernel, "Debian") {
			t.Errorf("the guest's kernel is %q, want Debian's: is it a machine of its own?", kernel)
		}
	})
	t.Run("kubevirtInterfaces", func(t *testing.T) {
		l := newLab(t, Options{DualStack: true, VM: guest})
		startIstio(t, l, "1.29.6", NFT, "--dual-stack", "-k", Bridge)
		do(t, l.KubeVirt(t.Context(), "v1.9.0-istio-noports-dual"), l.StartGuest(t.Context()))
		wantOutcomes(t, l, kubevirtInterfaces)
	})
}

// TestKubeVirtInterfaces has every backend and several versions, with the same outcomes.
func TestKubeVirtInterfaces(t *testing.T) {
	for name, c := range map[string]struct {
		version string
		backend Backend
		args    []string
	}{
		"1.18.7 nft":      {"1.18.7", NFT, []string{"--dual-stack"}},
		"1.22.8 legacy":   {"1.22.8", Legacy, []string{"--dual-stack"}},
		"1.29.6 legacy":   {"1.29.6", Legacy, []string{"--dual-stack"}},
		"1.31.0-rc.0 nft": {"1.31.0-rc.0", NFT, []string{"--dual-stack"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, Options{DualStack: true})
			startIstio(t, l, c.version, c.backend, append(c.args, "-k", Bridge)...)
			do(t, l.KubeVirt(t.Context(), "v1.9.0-istio-noports-dual"), l.StartGuest(t.Context()))
			wantOutcomes(t, l, kubevirtInterfaces)
		})
	}
}

// TestKubeVirtInterfacesIPv4 has a mesh that was not told of IPv6: that stays outside the mesh, and
// inbound has no way at all. Ports are listed, 22 among them.
func TestKubeVirtInterfacesIPv4(t *testing.T) {
	t.Parallel()
	l := newLab(t, Options{DualStack: true})
	startIstio(t, l, "1.29.6", NFT, "-k", Bridge)
	do(t, l.KubeVirt(t.Context(), "v1.9.0-istio-ports-22-80-dual"), l.StartGuest(t.Context()))
	wantOutcomes(t, l, with(kubevirtInterfaces, map[string]string{
		"egress-tcp6":     "ok saw fd00:10:244:1::11",
		"egress-service6": "ok saw fd00:10:244:1::11",
		"ingress-tcp6":    "fails",
	}))
}

// TestNativeNFT has Istio write nftables itself.
func TestNativeNFT(t *testing.T) {
	t.Parallel()
	l := newLab(t, Options{})
	startIstio(t, l, "1.31.0-rc.0", "", "--native-nftables", "-k", Bridge)
	do(t, l.KubeVirt(t.Context(), "v1.9.0-istio-noports-ipv4"), l.StartGuest(t.Context()))
	want := map[string]string{}
	for name, outcome := range kubevirtInterfaces {
		if !FlowNamed(name).IPv6() {
			want[name] = outcome
		}
	}
	wantOutcomes(t, l, want)
}

// TestDNSCapture has the guest's DNS: Istio redirects that of the pod's processes only, and by
// default even breaks the guest's, because it moves the answers to another conntrack zone than the
// masqueraded questions are in.
func TestDNSCapture(t *testing.T) {
	for name, c := range map[string]struct{ recording, udp string }{
		"istio mode": {"v1.9.0-istio-noports-dual", "fails"},
		"plain mode": {"v1.9.0-noistio-noports-dual", "ok 192.0.2.53"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, Options{DualStack: true})
			startIstio(t, l, "1.29.6", NFT, "--dual-stack", "--redirect-dns", "-k", Bridge)
			do(t, l.KubeVirt(t.Context(), c.recording), l.StartGuest(t.Context()))
			for flow, want := range map[string]string{"dns-udp": c.udp, "dns-tcp": "ok outbound 192.0.2.53"} {
				if r := l.Check(t.Context(), FlowNamed(flow)); r.Outcome() != want {
					t.Errorf("%s: outcome %q, want %q", r, r.Outcome(), want)
				}
			}
			pod := FlowNamed("dns-udp")
			pod.From = Pod
			if r := l.Check(t.Context(), pod); r.Outcome() != "ok dns 192.0.2.153" {
				t.Errorf("%s: outcome %q, want the pod's own DNS captured", r, r.Outcome())
			}
		})
	}
}

// TestIstioWithoutInterfaces has a virtual machine whose interface nobody told Istio of: each
// connection of the guest ends in the inbound listener.
func TestIstioWithoutInterfaces(t *testing.T) {
	t.Parallel()
	l := newLab(t, Options{DualStack: true})
	startIstio(t, l, "1.29.6", NFT, "--dual-stack")
	do(t, l.KubeVirt(t.Context(), "v1.9.0-istio-noports-dual"), l.StartGuest(t.Context()))
	want := with(kubevirtInterfaces, map[string]string{
		"dns-tcp":        "fails inbound",
		"hairpin":        "ok inbound saw 10.0.2.1",
		"attack-gateway": "ok serving",
	})
	for name := range want {
		if strings.HasPrefix(name, "egress-") {
			want[name] = "fails inbound"
		}
	}
	wantOutcomes(t, l, want)
}

// TestExclusions proves the exclusion flows: they pass the sidecar unless excluded (above), and do not
// when they are. Istio's exclusions are for the pod's own traffic only: the guest's is redirected.
func TestExclusions(t *testing.T) {
	t.Parallel()
	l := newLab(t, Options{})
	startIstio(t, l, "1.29.6", NFT, "-x", ExcludedCIDR.String(), "-o", "3306", "-k", Bridge)
	do(t, l.KubeVirt(t.Context(), "v1.9.0-istio-noports-ipv4"), l.StartGuest(t.Context()))
	for _, name := range []string{"egress-excluded-cidr", "egress-excluded-port"} {
		f := FlowNamed(name)
		if r := l.Check(t.Context(), f); !r.Passed(sidecar.Out) {
			t.Errorf("%s: outcome %q, want it through the sidecar", r, r.Outcome())
		}
		f.From = Pod
		if r := l.Check(t.Context(), f); !r.Passed() {
			t.Errorf("%s: outcome %q, want it past the sidecar", r, r.Outcome())
		}
	}
}

// TestSidecarRefusesDirect has a connection to the sidecar's own ports that nobody redirected, which
// an Envoy refuses too.
func TestSidecarRefusesDirect(t *testing.T) {
	t.Parallel()
	l := newLab(t, Options{})
	do(t, l.StartSidecar(t.Context(), sidecar.Config{}))
	r := l.Check(t.Context(), Flow{Name: "direct", From: Node, Network: "tcp", To: at(PodIP4, sidecar.Outbound), Kind: "echo"})
	if r.OK || len(r.Sidecar) != 1 || r.Sidecar[0].Err == "" {
		t.Errorf("%s: sidecar saw %+v, want one refused connection", r, r.Sidecar)
	}
}

// TestRealIstioIptables has a program in place of the recordings.
func TestRealIstioIptables(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	program, out := filepath.Join(dir, "istio-iptables"), filepath.Join(dir, "out")
	script := "#!/bin/sh\nset -e\niptables-nft -t nat -N REAL\n(echo \"$@\"; echo $COLOUR; cat /etc/resolv.conf) >" + out + "\n"
	do(t, os.WriteFile(program, []byte(script), 0o755))
	l := newLab(t, Options{IstioIptables: program})
	_, err := l.IstioInit(t.Context(), "1.29.6", "", []string{"istio-iptables", "-p", "15001"}, map[string]string{"COLOUR": "red"})
	do(t, err)
	rules, err := l.Ruleset(t.Context())
	do(t, err)
	if !strings.Contains(rules, "chain REAL") {
		t.Errorf("the program's chain is not in the pod:\n%s", rules)
	}
	got, err := os.ReadFile(out)
	do(t, err)
	if want := "-p 15001\nred\n" + l.ResolvConf(); string(got) != want {
		t.Errorf("the program saw %q, want %q", got, want)
	}
}

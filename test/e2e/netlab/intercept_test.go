package netlab

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/meshvirt/meshvirt/pkg/annotations"
	"github.com/meshvirt/meshvirt/pkg/mutate"
	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/templates"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/agent"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/sidecar"
	"github.com/meshvirt/meshvirt/tools"
)

// These tests have a mesh that intercepts inbound connections by TPROXY.

// patience is for machines under load. What is to fail as an attack is not waited for as long.
const patience = 8 * time.Second

// startIntercepting is startIstio with that interception.
func startIntercepting(t *testing.T, l *Lab, version string, backend Backend, args ...string) {
	t.Helper()
	startIstio(t, l, version, backend, append([]string{"-m", "TPROXY"}, args...)...)
}

// intercepted is the plan for it.
func intercepted(mode plan.Mode) plan.Plan {
	p := handMade(mode)
	p.Mesh.TProxyMark = 1337
	return p
}

// withoutDNS is p for a mesh that does not capture DNS.
func withoutDNS(p plan.Plan) plan.Plan {
	p.Mesh.DNS = nil
	if p.Proxy != nil {
		p.Proxy.DNSPort = 0
	}
	return p
}

// seen is member where the guest sees its clients, as the mesh's proxy shows them.
var seen = with(member, map[string]string{
	"ingress-tcp4":  "ok inbound saw 10.244.2.20",
	"ingress-tcp6":  "ok inbound saw fd00:10:244:2::20",
	"ingress-half4": "ok inbound saw 10.244.2.20",
	"ingress-ssh4":  "ok inbound saw 10.244.2.20",
	"ingress-ssh6":  "ok inbound saw fd00:10:244:2::20",
	"probe-guest":   "ok inbound saw 10.244.1.1",
})

// plainSeen is seen with KubeVirt in its plain mode, where the guest, calling the pod, comes in again.
var plainSeen = with(seen, map[string]string{"hairpin": "ok outbound inbound saw 10.244.1.17"})

func TestIntercepted(t *testing.T) {
	checkModes(t, Options{Timeout: patience}, startIntercepting, intercepted, map[string]pairing{
		"istio mode":            {"1.29.6", NFT, nil, "v1.9.0-istio-noports-dual", seen},
		"istio mode with ports": {"1.22.8", Legacy, nil, "v1.9.0-istio-ports-22-80-dual", seen},
		"plain mode":            {"1.31.0-rc.0", "", []string{"--native-nftables"}, "v1.9.0-noistio-noports-dual", plainSeen},
		"plain mode with ports": {"1.26.8", NFT, nil, "v1.0.1-noistio-ports-22-80-dual", plainSeen},
	})
}

// TestInterceptedPod has an ordinary application in the pod and no VM: what Istio promises, the lab keeps.
func TestInterceptedPod(t *testing.T) {
	t.Parallel()
	l := newLab(t, Options{Timeout: patience, DualStack: true})
	startIntercepting(t, l, "1.29.6", NFT, "--dual-stack")
	do(t, l.Pod.Listen(t.Context(), agent.Listen{Network: "tcp", Addr: at(netip.IPv6Unspecified(), AppPort), Kind: agent.Echo}))
	for _, ip := range l.PodIPs() {
		r := l.Check(t.Context(), Flow{Name: "ingress-app", From: Peer, Network: "tcp", To: at(ip, AppPort), Kind: agent.Echo})
		if !r.Passed(sidecar.In) {
			t.Fatalf("%s, want it through the sidecar", r)
		}
		if client, app := r.Sidecar[0].Peer.Addr(), r.Sidecar[0].Local.Addr(); client != app {
			t.Errorf("the sidecar called the application from %s, want %s", app, client)
		}
	}
}

// TestInterceptedVirtualMachine has the real guest, and the paths.
func TestInterceptedVirtualMachine(t *testing.T) {
	t.Parallel()
	guest := useVM(t)
	for mode, egress := range map[plan.Mode]string{
		plan.Rules:    "guest 10.0.2.2 -> k6t-eth0 -> sidecar :15001 (orig 10.244.2.20:8080) -> eth0 -> peer (saw 10.244.1.17)",
		plan.NATProxy: "guest 10.0.2.2 -> k6t-eth0 -> nat-proxy :15101 (orig 10.244.2.20:8080) -> sidecar :15001 (orig 10.244.2.20:8080) -> eth0 -> peer (saw 10.244.1.17)",
		plan.TProxy:   "guest 10.0.2.2 -> k6t-eth0 -> tproxy :15101 (orig 10.244.2.20:8080) -> sidecar :15001 (orig 10.244.2.20:8080) -> eth0 -> peer (saw 10.244.1.17)",
	} {
		t.Run(string(mode), func(t *testing.T) {
			l := newLab(t, Options{Timeout: patience, DualStack: true, Image: dataPlane(t), VM: guest})
			startIntercepting(t, l, "1.29.6", NFT, "--dual-stack", "--redirect-dns", "-c", Bridge)
			startMeshVirt(t, l, intercepted(mode))
			do(t, l.KubeVirt(t.Context(), "v1.9.0-noistio-noports-dual"), l.StartGuest(t.Context()))
			wantOutcomes(t, l, plainSeen)
			for name, want := range map[string]string{
				"egress-tcp4":  egress,
				"ingress-tcp4": "peer 10.244.2.20 -> eth0 -> sidecar :15006 (orig 10.244.1.17:80) -> k6t-eth0 -> guest (saw 10.244.2.20)",
			} {
				if got := strings.Join(l.Check(t.Context(), FlowNamed(name)).Hops, " -> "); got != want {
					t.Errorf("%s:\n got %s\nwant %s", name, got, want)
				}
			}
		})
	}
}

// TestInterceptedSysctls has bridged packets seen by the IP hooks or not, and reverse paths checked or not.
func TestInterceptedSysctls(t *testing.T) {
	for _, mode := range []plan.Mode{plan.Rules, plan.TProxy} {
		for _, bridgeNF := range []string{"0", "1"} {
			t.Run(string(mode)+"/bridge-nf and rp_filter "+bridgeNF, func(t *testing.T) {
				t.Parallel()
				l := newLab(t, Options{Timeout: patience, DualStack: true, Image: dataPlane(t)})
				do(t,
					l.Namespace().Sysctl("bridge/bridge-nf-call-iptables", bridgeNF),
					l.Namespace().Sysctl("bridge/bridge-nf-call-ip6tables", bridgeNF),
					l.Namespace().Sysctl("ipv4/conf/all/rp_filter", bridgeNF),
					l.Namespace().Sysctl("ipv4/conf/default/rp_filter", bridgeNF))
				startIntercepting(t, l, "1.29.6", NFT, "--dual-stack", "--redirect-dns", "-c", Bridge)
				startMeshVirt(t, l, intercepted(mode))
				do(t, l.KubeVirt(t.Context(), "v1.9.0-istio-noports-dual"), l.StartGuest(t.Context()))
				wantOutcomes(t, l, seen)
			})
		}
	}
}

// TestInterceptedPast has what is not for the mesh's proxy: ports that only our plan excludes, ports of the
// mesh and of our containers, and of two ports the one that the mesh was told to include.
func TestInterceptedPast(t *testing.T) {
	own := func(port uint16) Flow {
		return Flow{Name: fmt.Sprint("own port ", port), From: Peer, Network: "tcp", To: at(PodIP4, port), Kind: "http"}
	}
	check := func(t *testing.T, l *Lab, f Flow, want string) {
		t.Helper()
		if r := l.Check(t.Context(), f); r.Outcome() != want {
			t.Errorf("%s\n got outcome %q\nwant %q", r, r.Outcome(), want)
		}
	}
	for _, mode := range owningModes {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			l := newLab(t, Options{Timeout: patience, DualStack: true, Image: dataPlane(t)})
			startIntercepting(t, l, "1.22.8", NFT, "--dual-stack", "-c", Bridge)
			p := withoutDNS(intercepted(mode))
			p.Inbound.ExcludePorts = []uint16{SSHPort}
			startMeshVirt(t, l, p)
			do(t, l.KubeVirt(t.Context(), "v1.9.0-istio-noports-dual"), l.StartGuest(t.Context()))
			wantFlows(t, l, map[string]string{
				"ingress-ssh4":  "ok saw 10.244.2.20",
				"ingress-ssh6":  "ok saw fd00:10:244:2::20",
				"ingress-tcp4":  seen["ingress-tcp4"],
				"probe-sidecar": "ok serving",
				"tunnel-port":   "ok serving",
			})
			if p.Proxy != nil {
				if r := l.Check(t.Context(), own(p.Proxy.StatusPort)); len(r.Via) > 0 || r.Status == 0 {
					t.Errorf("%s, want the relay's own answer", r)
				}
			}
		})
		t.Run(string(mode)+"/included", func(t *testing.T) {
			t.Parallel()
			l := newLab(t, Options{Timeout: patience, DualStack: true, Image: dataPlane(t)})
			startIntercepting(t, l, "1.18.7", NFT, "--dual-stack", "-b", "80,22", "-d", "", "-c", Bridge)
			p := withoutDNS(intercepted(mode))
			p.Inbound = plan.Inbound{IncludePorts: []uint16{HTTPPort, SSHPort}, ExcludePorts: []uint16{SSHPort}}
			startMeshVirt(t, l, p)
			do(t, l.KubeVirt(t.Context(), "v1.9.0-istio-noports-dual"), l.StartGuest(t.Context()))
			wantFlows(t, l, map[string]string{
				"ingress-tcp4":   seen["ingress-tcp4"],
				"ingress-tcp6":   seen["ingress-tcp6"],
				"ingress-ssh4":   "ok saw 10.244.2.20",
				"ingress-other4": "ok saw 10.244.2.20",
			})
			check(t, l, own(sidecar.Prometheus), "ok serving")
		})
	}
}

// TestInterceptedIPv4 has a mesh that serves no IPv6 in a pod that has it.
func TestInterceptedIPv4(t *testing.T) {
	t.Parallel()
	l := newLab(t, Options{Timeout: patience, DualStack: true, Image: dataPlane(t)})
	startIntercepting(t, l, "1.18.7", NFT, "--redirect-dns", "-c", Bridge)
	p := intercepted(plan.Rules)
	p.Mesh.DualStack = false
	startMeshVirt(t, l, p)
	do(t, l.KubeVirt(t.Context(), "v1.9.0-noistio-noports-dual"), l.StartGuest(t.Context()))
	want := with(plainSeen, nil)
	for _, f := range Flows {
		if f.IPv6() {
			want[f.Name] = noMesh[f.Name]
		}
	}
	wantOutcomes(t, l, want)
}

// TestInterceptedAgent probes the guest as Istio's agent does, from 127.0.0.6 and as the proxy's group.
func TestInterceptedAgent(t *testing.T) {
	for _, mode := range owningModes {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			l := newLab(t, Options{Timeout: patience, DualStack: true, Image: dataPlane(t)})
			startIntercepting(t, l, "1.29.6", NFT, "--dual-stack", "--redirect-dns", "-c", Bridge)
			startMeshVirt(t, l, intercepted(mode))
			do(t, l.KubeVirt(t.Context(), "v1.9.0-istio-noports-dual"), l.StartGuest(t.Context()))
			for source, to := range map[string]string{"127.0.0.6": at(PodIP4, SSHPort).String(), "::6": at(PodIP6, SSHPort).String()} {
				var c net.Conn
				err := l.Namespace().Do(func() (err error) {
					before, err := unix.SetfsgidRetGid(sidecar.GID)
					if err != nil {
						return err
					}
					defer unix.SetfsgidRetGid(before)
					d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(source)}, Timeout: l.Timeout}
					c, err = d.Dial("tcp", to)
					return err
				})
				do(t, err)
				defer c.Close()
				do(t, c.SetDeadline(time.Now().Add(l.Timeout)))
				banner := make([]byte, 4)
				if n, err := c.Read(banner); err != nil || n == 0 {
					t.Errorf("from %s to %s: %v, want the guest's banner", source, to, err)
				}
			}
		})
	}
}

// TestInterceptedAsAdmitted runs what the webhook makes of recorded pods. The other tests have plans of
// their own.
func TestInterceptedAsAdmitted(t *testing.T) {
	for name, mode := range map[string]plan.Mode{
		"v1.0.1/masquerade-istio-ports/injected-1.18.7-tproxy-classic": plan.Auto,
		"v1.9.0/masquerade-istio-ports/injected-1.22.8-tproxy-classic": plan.NATProxy,
		"v1.9.0/masquerade-istio-ports/injected-1.29.6-tproxy-classic": plan.TProxy,
		"v1.9.0/masquerade-istio-ports/injected-1.31.0-rc.0-tproxy":    plan.Auto,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			root, err := tools.Root()
			do(t, err)
			b, err := os.ReadFile(filepath.Join(root, "test/corpus/pods", name+".yaml"))
			do(t, err)
			var pod corev1.Pod
			do(t, yaml.Unmarshal(b, &pod))
			pod.Annotations[annotations.Mode] = string(mode)
			adapted, report, errs := mutate.Apply(&pod, mutate.Facts{}, mutate.Config{Image: templates.Image{Name: "example.com/dataplane:test"}})
			if mode == plan.Auto {
				mode = plan.Rules
			}
			if report.Mode != mode || len(errs) > 0 {
				t.Fatalf("report %s, errors %v", report, errs)
			}
			l := newLab(t, Options{Timeout: patience, Image: dataPlane(t), Pod: adapted})
			for _, c := range adapted.Spec.InitContainers {
				switch {
				case c.Name == "istio-init":
					rules, err := l.IstioInitContainer(t.Context(), NFT, c)
					do(t, err, l.StartSidecar(t.Context(), sidecar.Config{Transparent: rules.TProxy}))
				case c.Name == templates.RulesName && c.RestartPolicy == nil:
					do(t, l.RunInit(t.Context(), c))
				case c.Name == templates.RulesName, c.Name == templates.ProxyName:
					_, err := l.Start(c)
					do(t, err, l.WaitReady(t.Context(), c, c.StartupProbe))
				}
			}
			do(t, l.KubeVirt(t.Context(), "v1.9.0-istio-ports-22-80-ipv4"), l.StartGuest(t.Context()))
			wantFlows(t, l, map[string]string{
				"egress-tcp4":    seen["egress-tcp4"],
				"ingress-tcp4":   seen["ingress-tcp4"],
				"ingress-ssh4":   seen["ingress-ssh4"],
				"probe-guest":    seen["probe-guest"],
				"probe-sidecar":  seen["probe-sidecar"],
				"attack-gateway": seen["attack-gateway"],
			})
		})
	}
}

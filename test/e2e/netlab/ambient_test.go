package netlab

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/istio"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/sidecar"
)

// ambientPlan is the plan for the pod of the lab in an ambient mesh.
func ambientPlan() plan.Plan {
	p := handMade(plan.Ambient)
	p.Mesh = plan.Mesh{OutboundPort: 15001, InboundPort: 15006, OwnPorts: []uint16{15008}, DualStack: true, DNS: &plan.DNS{Port: 15053, All: true}}
	return p
}

// listPorts has the VM list ports 22 and 80, and one of UDP.
func listPorts(p plan.Plan) plan.Plan {
	p.Guest.TCP, p.Guest.UDP = []plan.PortRange{plan.Port(SSHPort), plan.Port(HTTPPort)}, []plan.PortRange{plan.Port(UDPPort)}
	return p
}

// startAmbient does what istio-cni and ztunnel do. Ztunnel listens on IPv6 wherever the node has it.
func startAmbient(t *testing.T, l *Lab, backend Backend, o istio.AmbientOptions) {
	t.Helper()
	rules, err := l.AmbientEnrol(t.Context(), backend, o)
	do(t, err, l.StartZtunnel(t.Context(), sidecar.Config{IPv6: true, DNS: rules.DNS}))
}

func wantFlows(t *testing.T, l *Lab, want map[string]string) {
	t.Helper()
	l.Check(t.Context(), FlowNamed("icmp4")) // the pod cannot ask for the guest as 127.0.0.1, whom attack-loopback is answered by
	for name, outcome := range want {
		if r := l.Check(t.Context(), FlowNamed(name)); r.Outcome() != outcome {
			t.Errorf("%s\n got outcome %q\nwant %q", r, r.Outcome(), outcome)
		}
	}
}

// TestAmbientAbsent is what a masquerade VM has in an ambient mesh without MeshVirt, with and without
// Istio's annotation for its interface: in no mode of KubeVirt's does inbound TCP come through the mesh.
func TestAmbientAbsent(t *testing.T) {
	for name, c := range map[string]struct {
		reroute  bool
		kubevirt string
		want     map[string]string
	}{
		"plain mode": {false, "v1.9.0-noistio-noports-dual", map[string]string{
			"egress-tcp4":     "fails inbound",
			"egress-tcp6":     "fails inbound",
			"ingress-tcp4":    "ok saw 10.244.2.20", // past the mesh and its policy
			"ingress-tcp6":    "ok saw fd00:10:244:2::20",
			"tunnel-tcp4":     "fails", // the port is forwarded to the guest
			"dns-udp":         "ok 192.0.2.53",
			"attack-loopback": "fails rst",
		}},
		"plain mode, rerouted": {true, "v1.9.0-noistio-noports-dual", map[string]string{
			"egress-tcp4":     "ok outbound saw 10.244.1.17",
			"egress-tcp6":     "ok outbound saw fd00:10:244:1::11",
			"ingress-tcp4":    "ok saw 10.244.2.20",
			"ingress-tcp6":    "ok saw fd00:10:244:2::20",
			"tunnel-tcp4":     "fails",
			"dns-udp":         "ok 192.0.2.53",
			"attack-loopback": "ok syn-ack",
		}},
		"plain mode with ports, rerouted": {true, "v1.9.0-noistio-ports-22-80-dual", map[string]string{
			"egress-tcp4":  "ok outbound saw 10.244.1.17",
			"ingress-tcp4": "ok saw 10.244.2.20",
			"tunnel-port":  "ok serving",
			"tunnel-tcp4":  "fails tunnel",
			"dns-udp":      "fails",
		}},
		"istio mode, rerouted": {true, "v1.9.0-istio-noports-dual", map[string]string{
			"egress-tcp4":    "ok outbound saw 10.244.1.17",
			"ingress-tcp4":   "fails inbound",
			"ingress-tcp6":   "fails inbound",
			"tunnel-port":    "ok serving",
			"tunnel-tcp4":    "fails tunnel",
			"udp-in4":        "fails",
			"dns-udp":        "fails",
			"probe-ambient4": "fails",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, Options{DualStack: true})
			startAmbient(t, l, NFT, istio.AmbientOptions{DualStack: true, Reroute: c.reroute})
			do(t, l.KubeVirt(t.Context(), c.kubevirt), l.StartGuest(t.Context()))
			wantFlows(t, l, c.want)
		})
	}
}

// ambientMember is what MeshVirt makes of it, in every mode of KubeVirt's. The guest sees its clients' own
// addresses.
var ambientMember = with(noMesh, map[string]string{
	"egress-tcp4":     "ok outbound saw 10.244.1.17",
	"egress-tcp6":     "ok outbound saw fd00:10:244:1::11",
	"egress-half4":    "ok outbound saw 10.244.1.17",
	"egress-banner4":  "ok outbound saw 10.244.1.17",
	"egress-service4": "ok outbound saw 10.244.1.17",
	"egress-service6": "ok outbound saw fd00:10:244:1::11",
	"ingress-tcp4":    "ok inbound saw 10.244.2.20",
	"ingress-tcp6":    "ok inbound saw fd00:10:244:2::20",
	"ingress-half4":   "ok inbound saw 10.244.2.20",
	"ingress-ssh4":    "ok inbound saw 10.244.2.20",
	"ingress-ssh6":    "ok inbound saw fd00:10:244:2::20",
	"ingress-other4":  "ok inbound saw 10.244.2.20",
	"tunnel-tcp4":     "ok tunnel saw 10.244.2.20",
	"tunnel-tcp6":     "ok tunnel saw fd00:10:244:2::20",
	"tunnel-banner4":  "ok tunnel saw 10.244.2.20",
	"tunnel-port":     "ok serving",
	"probe-ambient4":  "ok saw 169.254.7.127",
	"probe-ambient6":  "ok saw fd16:9254:7127:1337:ffff:ffff:ffff:ffff",
	"probe-guest":     "ok inbound saw 10.244.1.1", // from the node, but not the kubelet's
	"probe-sidecar":   "fails inbound",             // there is none, and the guest does not serve the port
	"dns-udp":         "ok dns 192.0.2.153",
	"dns-tcp":         "ok dns 192.0.2.153",
	"dns-udp6":        "ok 192.0.2.53", // not captured, but not lost between two zones either
	"pod-egress":      "ok outbound saw 10.244.1.17",
	"pod-self":        "ok saw 10.244.1.17",
	"hairpin":         "ok outbound saw 10.244.1.17",
	"attack-loopback": "fails",
	"attack-spoof":    "fails",
})

// listed are the outcomes for a VM that lists ports 22 and 80.
var listed = with(ambientMember, map[string]string{"ingress-other4": "fails inbound"})

func TestAmbient(t *testing.T) {
	dual := istio.AmbientOptions{DualStack: true}
	rerouted := istio.AmbientOptions{DualStack: true, Reroute: true}
	for name, c := range map[string]struct {
		backend  Backend
		options  istio.AmbientOptions
		later    bool // the pod joins the mesh when its guest runs already
		kubevirt string
		want     map[string]string
	}{
		"istio mode":                     {NFT, dual, false, "v1.9.0-istio-noports-dual", ambientMember},
		"istio mode with ports":          {NFT, dual, false, "v1.9.0-istio-ports-22-80-dual", listed},
		"plain mode":                     {NFT, dual, false, "v1.9.0-noistio-noports-dual", ambientMember},
		"plain mode with ports, legacy":  {Legacy, dual, false, "v1.9.0-noistio-ports-22-80-dual", listed},
		"plain mode, rerouted":           {NFT, rerouted, false, "v1.0.1-noistio-noports-dual", ambientMember},
		"istio mode, rerouted, later":    {NFT, rerouted, true, "v1.9.0-istio-noports-dual", ambientMember},
		"plain mode, later":              {NFT, dual, true, "v1.9.0-noistio-noports-dual", ambientMember},
		"istio mode, native":             {"", istio.AmbientOptions{Native: true}, false, "v1.9.0-istio-noports-ipv4", ambientMember},
		"plain mode, native, with ports": {"", istio.AmbientOptions{Native: true, Reroute: true}, false, "v1.9.0-noistio-ports-22-80-ipv4", listed},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, Options{DualStack: c.options.DualStack, Image: dataPlane(t)})
			if !c.later {
				startAmbient(t, l, c.backend, c.options)
			}
			p := ambientPlan()
			if strings.Contains(c.kubevirt, "-ports-") {
				p = listPorts(p)
			}
			startMeshVirt(t, l, p)
			do(t, l.KubeVirt(t.Context(), c.kubevirt), l.StartGuest(t.Context()))
			if c.later {
				startAmbient(t, l, c.backend, c.options)
			}
			want := c.want
			if !c.options.DualStack {
				want = map[string]string{}
				for name, outcome := range c.want {
					if !FlowNamed(name).IPv6() {
						want[name] = outcome
					}
				}
			}
			wantOutcomes(t, l, want, AmbientFlows...)
		})
	}
}

// TestAmbientVirtualMachine has the real guest, and the paths.
func TestAmbientVirtualMachine(t *testing.T) {
	t.Parallel()
	l := newLab(t, Options{DualStack: true, Image: dataPlane(t), VM: useVM(t)})
	startAmbient(t, l, NFT, istio.AmbientOptions{DualStack: true})
	startMeshVirt(t, l, ambientPlan())
	do(t, l.KubeVirt(t.Context(), "v1.9.0-istio-noports-dual"), l.StartGuest(t.Context()))
	wantOutcomes(t, l, ambientMember, AmbientFlows...)
	for name, want := range map[string]string{
		"egress-tcp4":  "guest 10.0.2.2 -> k6t-eth0 -> ztunnel :15001 (orig 10.244.2.20:8080) -> eth0 -> peer (saw 10.244.1.17)",
		"ingress-tcp4": "peer 10.244.2.20 -> eth0 -> ztunnel :15006 (orig 10.244.1.17:80) -> k6t-eth0 -> guest (saw 10.244.2.20)",
		"tunnel-tcp6":  "peer fd00:10:244:2::20 -> eth0 -> ztunnel :15008 -> k6t-eth0 -> guest (saw fd00:10:244:2::20)",
	} {
		if got := strings.Join(l.Check(t.Context(), FlowNamed(name)).Hops, " -> "); got != want {
			t.Errorf("%s:\n got %s\nwant %s", name, got, want)
		}
	}
}

// TestAmbientNeeds empties one chain after the other, and something fails every time.
func TestAmbientNeeds(t *testing.T) {
	for chain, want := range map[string]map[string]string{
		"replies":      {"ingress-tcp4": "fails inbound", "ingress-tcp6": "fails inbound", "tunnel-tcp4": "fails tunnel", "egress-tcp4": "ok outbound saw 10.244.1.17"},
		"output":       {"ingress-tcp6": "fails inbound", "tunnel-tcp6": "fails tunnel"},
		"dns_in":       {"dns-udp": "fails dns", "dns-udp6": "fails"},
		"dns_out":      {"dns-udp": "fails dns", "dns-udp6": "ok 192.0.2.53"},
		"from_guest":   {"egress-tcp4": "fails inbound", "dns-udp": "fails"},
		"from_outside": {"udp-in4": "fails"},
	} {
		t.Run(chain, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, Options{DualStack: true, Image: dataPlane(t)})
			startAmbient(t, l, NFT, istio.AmbientOptions{DualStack: true})
			startMeshVirt(t, l, listPorts(ambientPlan()))
			do(t, l.KubeVirt(t.Context(), "v1.9.0-istio-ports-22-80-dual"), l.StartGuest(t.Context()))
			_, err := l.RunInPod(t.Context(), "", "nft", "flush", "chain", "inet", "meshvirt", chain)
			do(t, err)
			wantFlows(t, l, want)
		})
	}
}

// TestAmbientStrictReversePath is on a node that checks where packets should come from (rp_filter), as
// those of several distributions do.
func TestAmbientStrictReversePath(t *testing.T) {
	t.Parallel()
	l := newLab(t, Options{DualStack: true, Image: dataPlane(t)})
	do(t, l.Namespace().Sysctl("ipv4/conf/all/rp_filter", "1"))
	startAmbient(t, l, NFT, istio.AmbientOptions{DualStack: true})
	startMeshVirt(t, l, ambientPlan())
	do(t, l.KubeVirt(t.Context(), "v1.9.0-noistio-noports-dual"), l.StartGuest(t.Context()))
	wantOutcomes(t, l, ambientMember, AmbientFlows...)
}

// TestAmbientRefusesWithoutZtunnel: while the mesh is not there, the guest's TCP does not get past it.
func TestAmbientRefusesWithoutZtunnel(t *testing.T) {
	t.Parallel()
	l := newLab(t, Options{DualStack: true, Image: dataPlane(t)})
	startMeshVirt(t, l, ambientPlan())
	do(t, l.KubeVirt(t.Context(), "v1.9.0-noistio-noports-dual"), l.StartGuest(t.Context()))
	wantFlows(t, l, map[string]string{"egress-tcp4": "fails", "egress-tcp6": "fails", "ingress-tcp4": "fails", "ingress-tcp6": "fails", "udp-out4": "ok saw 10.244.1.17"})
}

// TestAmbientExclusions has ports that go past the mesh to the guest.
func TestAmbientExclusions(t *testing.T) {
	t.Parallel()
	l := newLab(t, Options{DualStack: true, Image: dataPlane(t)})
	startAmbient(t, l, NFT, istio.AmbientOptions{DualStack: true})
	p := ambientPlan()
	p.Guest.TCP, p.Inbound.ExcludePorts = []plan.PortRange{plan.Port(HTTPPort)}, []uint16{SSHPort}
	startMeshVirt(t, l, p)
	do(t, l.KubeVirt(t.Context(), "v1.9.0-noistio-ports-22-80-dual"), l.StartGuest(t.Context()))
	wantFlows(t, l, map[string]string{
		"ingress-ssh4":   "ok saw 10.244.2.20",
		"ingress-ssh6":   "ok saw fd00:10:244:2::20",
		"ingress-tcp4":   "ok inbound saw 10.244.2.20",
		"ingress-other4": "fails inbound",
		"tunnel-banner4": "ok tunnel saw 10.244.2.20", // a tunnel ends in the mesh all the same
	})
}

// TestAmbientTunnelToItself has ztunnel reach the pod by a tunnel from inside, as it does if the guest
// calls a service that leads back to it. KubeVirt in its Istio mode would send that to the guest.
func TestAmbientTunnelToItself(t *testing.T) {
	t.Parallel()
	l := newLab(t, Options{DualStack: true, Image: dataPlane(t)})
	startAmbient(t, l, NFT, istio.AmbientOptions{DualStack: true})
	startMeshVirt(t, l, ambientPlan())
	do(t, l.KubeVirt(t.Context(), "v1.9.0-istio-noports-dual"), l.StartGuest(t.Context()))
	for _, ip := range l.PodIPs() {
		c, err := dialAsZtunnel(t.Context(), l, "tcp", at(ip, sidecar.HBONE).String())
		do(t, err)
		defer c.Close()
		do(t, c.SetDeadline(time.Now().Add(l.Timeout)))
		to := at(ip, HTTPPort)
		_, err = fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", to, to)
		do(t, err)
		_, err = io.ReadFull(c, make([]byte, len("HTTP/1.1 200 OK\r\n\r\n")))
		do(t, err)
		_, err = fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: %s\r\n\r\n", to)
		do(t, err)
		answer, err := io.ReadAll(c)
		do(t, err)
		if !strings.Contains(string(answer), "Server: lab-guest") {
			t.Errorf("%s: got %q, want the guest's answer", ip, answer)
		}
	}
}

// TestAmbientDNS has a plan that does not know of the mesh's capture: the guest's DNS is not captured
// then, but works, and so does that of the pod and of ztunnel.
func TestAmbientDNS(t *testing.T) {
	for name, captured := range map[string]bool{"captured": true, "unknown": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, Options{DualStack: true, Image: dataPlane(t)})
			startAmbient(t, l, NFT, istio.AmbientOptions{DualStack: true})
			p, want := ambientPlan(), map[string]string{"dns-udp": "ok dns 192.0.2.153", "dns-tcp": "ok dns 192.0.2.153", "dns-udp6": "ok 192.0.2.53"}
			if !captured {
				p.Mesh.DNS = nil
				want["dns-udp"], want["dns-tcp"] = "ok 192.0.2.53", "ok outbound 192.0.2.53"
			}
			startMeshVirt(t, l, p)
			do(t, l.KubeVirt(t.Context(), "v1.9.0-noistio-noports-dual"), l.StartGuest(t.Context()))
			wantFlows(t, l, want)
			pod := FlowNamed("dns-udp")
			pod.From = Pod
			if r := l.Check(t.Context(), pod); r.Outcome() != "ok dns 192.0.2.153" {
				t.Errorf("%s: outcome %q, want the pod's own DNS captured", r, r.Outcome())
			}
			for _, server := range []string{fmt.Sprintf("%s:53", DNSIP4), fmt.Sprintf("[%s]:53", DNSIP6)} {
				if got, err := askAsZtunnel(t.Context(), l, server); err != nil || got != ClusterDNSAnswer.String() {
					t.Errorf("ztunnel asked %s: got %q, %v, want %s", server, got, err, ClusterDNSAnswer)
				}
			}
		})
	}
}

// dialAsZtunnel dials from a marked socket in the pod.
func dialAsZtunnel(ctx context.Context, l *Lab, network, to string) (c net.Conn, err error) {
	d := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) (err error) {
		cerr := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, 0x539) })
		if cerr != nil {
			return cerr
		}
		return err
	}}
	err = l.Namespace().Do(func() error {
		c, err = d.DialContext(ctx, network, to)
		return err
	})
	return c, err
}

// askAsZtunnel resolves a name over UDP from a marked socket in the pod.
func askAsZtunnel(ctx context.Context, l *Lab, server string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, l.Timeout)
	defer cancel()
	r := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) { return dialAsZtunnel(ctx, l, "udp", server) }}
	addrs, err := r.LookupNetIP(ctx, "ip4", "app.default.svc.cluster.local.")
	if err != nil {
		return "", err
	}
	return addrs[0].String(), nil
}

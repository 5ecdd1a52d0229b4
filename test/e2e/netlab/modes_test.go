package netlab

import (
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/templates"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/container"
)

// dataPlane is MeshVirt's image.
func dataPlane(t *testing.T) container.Image {
	t.Helper()
	image := container.Image{Files: map[string]*os.File{}}
	for path, pkg := range map[string]string{templates.RulesProgram: "cmd/rules", templates.ProxyProgram: "cmd/proxy"} {
		program, err := Build(t.Context(), pkg)
		do(t, err)
		image.Files[path] = program
	}
	return image
}

// handMade is the plan for the pod of the lab in a dual-stack mesh with DNS capture, that excludes
// what the exclusion flows are for.
func handMade(mode plan.Mode) plan.Plan {
	p := plan.Plan{
		Mode:         mode,
		Interfaces:   []string{Bridge},
		PodInterface: PodLink,
		Guest:        plan.Guest{IPv4: GuestIP4, IPv6: GuestIP6},
		Mesh: plan.Mesh{
			OutboundPort: 15001, InboundPort: 15006, UID: 1337, GID: 1337, OwnPorts: []uint16{15008, 15020, 15021, 15090},
			DualStack: true, DNS: &plan.DNS{Port: 15053},
		},
		Outbound: plan.Outbound{All: true, ExcludeCIDRs: []netip.Prefix{ExcludedCIDR}, ExcludePorts: []uint16{ExcludedPort}},
		Inbound:  plan.Inbound{All: true},
	}
	switch mode {
	case plan.NATProxy:
		p.Proxy = &plan.Proxy{UID: 1500, OutboundPort: 15101, InboundPort: 15106, StatusPort: 15120, DNSPort: 15153, DrainSeconds: 5}
	case plan.TProxy:
		p.Proxy, p.WatchPort = &plan.Proxy{OutboundPort: 15101, InboundPort: 15106, StatusPort: 15120, DNSPort: 15153, DrainSeconds: 5}, 15121
	}
	return p
}

// startMeshVirt runs MeshVirt's containers as the webhook would inject them. It gives the relay, if the
// mode has one.
func startMeshVirt(t *testing.T, l *Lab, p plan.Plan) *container.Process {
	t.Helper()
	if p.WatchPort != 0 {
		startWatcher(t, l, p)
		if p.Proxy == nil {
			return nil
		}
		return startRelay(t, l, p)
	}
	c, err := templates.Rules(p, templates.Image{Name: templates.DefaultImage}, false)
	do(t, err, l.RunInit(t.Context(), c))
	if p.Proxy == nil {
		return nil
	}
	return startRelay(t, l, p)
}

// startRelay runs the relay alone, as the kubelet does again when it has ended.
func startRelay(t *testing.T, l *Lab, p plan.Plan) *container.Process {
	t.Helper()
	c, err := templates.Proxy(p, templates.Image{Name: templates.DefaultImage}, false)
	do(t, err)
	relay, err := l.Start(c)
	do(t, err, l.WaitReady(t.Context(), c, c.StartupProbe))
	ports := []uint16{p.Proxy.OutboundPort, p.Proxy.InboundPort}
	if p.Proxy.DNSPort != 0 {
		ports = append(ports, p.Proxy.DNSPort, p.Proxy.DNSPort+1)
	}
	for _, port := range ports {
		l.NamePort(port, string(p.Mode))
	}
	return relay
}

// member is what MeshVirt makes of kubevirtInterfaces, with KubeVirt in its Istio mode: everything
// goes where the mesh was told to send it, and the guest reaches nothing of the pod's own.
var member = with(kubevirtInterfaces, map[string]string{
	"egress-excluded-cidr": "ok saw 10.244.1.17",
	"egress-excluded-port": "ok saw 10.244.1.17",
	"ingress-tcp6":         "ok inbound saw fd10:0:2::1",
	"ingress-ssh4":         "ok inbound saw 10.0.2.1",
	"ingress-ssh6":         "ok inbound saw fd10:0:2::1",
	"udp-in4":              "ok saw 10.244.2.20",
	"udp-in6":              "ok saw fd00:10:244:2::20",
	"dns-udp":              "ok dns 192.0.2.153",
	"dns-tcp":              "ok dns 192.0.2.153",
	"attack-loopback":      "fails",
	"attack-gateway":       "fails",
	"attack-spoof":         "fails",
})

// plainMember is member with KubeVirt in its plain mode, where the pod's own address is not the guest's
// in OUTPUT: what the sidecar sends there comes in again.
var plainMember = with(member, map[string]string{"hairpin": "ok outbound inbound saw 10.0.2.1"})

// owningModes are those whose rules own everything of the guest's that is for the mesh.
var owningModes = []plan.Mode{plan.Rules, plan.NATProxy, plan.TProxy}

// A pairing is how Istio and KubeVirt write their rules, and what the guest then has in each of owningModes.
type pairing struct {
	version  string
	backend  Backend
	args     []string
	kubevirt string
	want     map[string]string
}

// checkModes has every flow, in every mode and pairing, each in a lab of its own. startMesh is startIstio, or does more.
func checkModes(t *testing.T, o Options, startMesh func(*testing.T, *Lab, string, Backend, ...string), planFor func(plan.Mode) plan.Plan, pairings map[string]pairing) {
	for name, c := range pairings {
		for _, mode := range owningModes {
			t.Run(string(mode)+"/"+name, func(t *testing.T) {
				t.Parallel()
				own := o
				own.DualStack, own.Image = true, dataPlane(t)
				l := newLab(t, own)
				startMesh(t, l, c.version, c.backend, append(c.args, "--dual-stack", "--redirect-dns", "--istio-exclude-interfaces", Bridge)...)
				startMeshVirt(t, l, planFor(mode))
				do(t, l.KubeVirt(t.Context(), c.kubevirt), l.StartGuest(t.Context()))
				wantOutcomes(t, l, c.want)
			})
		}
	}
}

func TestModes(t *testing.T) {
	checkModes(t, Options{}, startIstio, handMade, map[string]pairing{
		"istio mode":            {"1.29.6", NFT, nil, "v1.9.0-istio-noports-dual", member},
		"istio mode with ports": {"1.22.8", Legacy, nil, "v1.9.0-istio-ports-22-80-dual", member},
		"plain mode":            {"1.31.0-rc.0", "", []string{"--native-nftables"}, "v1.9.0-noistio-noports-dual", plainMember},
		"plain mode with ports": {"1.29.6", Legacy, nil, "v1.0.1-noistio-ports-22-80-dual", plainMember},
	})
}

// TestModesVirtualMachine has the real guest, and the paths.
func TestModesVirtualMachine(t *testing.T) {
	t.Parallel()
	guest := useVM(t)
	for mode, path := range map[plan.Mode]string{
		plan.Rules:    "guest 10.0.2.2 -> k6t-eth0 -> sidecar :15001 (orig 10.244.2.20:8080) -> eth0 -> peer (saw 10.244.1.17)",
		plan.NATProxy: "guest 10.0.2.2 -> k6t-eth0 -> nat-proxy :15101 (orig 10.244.2.20:8080) -> sidecar :15001 (orig 10.244.2.20:8080) -> eth0 -> peer (saw 10.244.1.17)",
		plan.TProxy:   "guest 10.0.2.2 -> k6t-eth0 -> tproxy :15101 (orig 10.244.2.20:8080) -> sidecar :15001 (orig 10.244.2.20:8080) -> eth0 -> peer (saw 10.244.1.17)",
	} {
		t.Run(string(mode), func(t *testing.T) {
			l := newLab(t, Options{DualStack: true, Image: dataPlane(t), VM: guest})
			startIstio(t, l, "1.29.6", NFT, "--dual-stack", "--redirect-dns", "-c", Bridge)
			startMeshVirt(t, l, handMade(mode))
			do(t, l.KubeVirt(t.Context(), "v1.9.0-istio-noports-dual"), l.StartGuest(t.Context()))
			wantOutcomes(t, l, member)
			if got := strings.Join(l.Check(t.Context(), FlowNamed("egress-tcp4")).Hops, " -> "); got != path {
				t.Errorf("path\n got %s\nwant %s", got, path)
			}
		})
	}
}

// TestRulesAgain has the init container run once more in the running pod, as after a restart of all
// containers.
func TestRulesAgain(t *testing.T) {
	t.Parallel()
	l := newLab(t, Options{DualStack: true, Image: dataPlane(t)})
	startIstio(t, l, "1.29.6", NFT, "--dual-stack", "--redirect-dns", "-c", Bridge)
	startMeshVirt(t, l, handMade(plan.Rules))
	do(t, l.KubeVirt(t.Context(), "v1.9.0-istio-noports-dual"), l.StartGuest(t.Context()))
	startMeshVirt(t, l, handMade(plan.Rules))
	wantOutcomes(t, l, member)
}

// TestModesAbsent proves that TestModes fails without MeshVirt: the interface is excluded from the
// mesh, nothing has taken it over, and most of the guest's traffic goes past the sidecar.
func TestModesAbsent(t *testing.T) {
	t.Parallel()
	l := newLab(t, Options{DualStack: true})
	startIstio(t, l, "1.29.6", NFT, "--dual-stack", "--redirect-dns", "-c", Bridge)
	do(t, l.KubeVirt(t.Context(), "v1.9.0-istio-noports-dual"), l.StartGuest(t.Context()))
	want := with(kubevirtInterfaces, map[string]string{
		"dns-udp":         "fails",
		"dns-tcp":         "ok 192.0.2.53",
		"hairpin":         "fails",
		"attack-gateway":  "ok serving",
		"attack-loopback": "ok syn-ack",
	})
	for name := range want {
		if strings.HasPrefix(name, "egress-") {
			want[name] = noMesh[name]
		}
	}
	wantOutcomes(t, l, want)
}

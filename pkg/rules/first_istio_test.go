package rules

import (
	"net"
	"net/netip"
	"testing"

	"github.com/meshvirt/meshvirt/pkg/plan"
)

// firstIstio is what the script of proxy_init 0.7 writes for `-p 15010 -u 1337 -i 10.244.2.0/24`, by hand. Its one
// port takes both directions.
const firstIstio = `*nat
:ISTIO_REDIRECT - [0:0]
:ISTIO_OUTPUT - [0:0]
-A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15010
-A PREROUTING -j ISTIO_REDIRECT
-A OUTPUT -p tcp -j ISTIO_OUTPUT
-A ISTIO_OUTPUT ! -d 127.0.0.1/32 -o lo -j ISTIO_REDIRECT
-A ISTIO_OUTPUT -m owner --uid-owner 1337 -j RETURN
-A ISTIO_OUTPUT -d 127.0.0.1/32 -j RETURN
-A ISTIO_OUTPUT -d 10.244.2.0/24 -j ISTIO_REDIRECT
-A ISTIO_OUTPUT -j RETURN
COMMIT
`

// TestFirstIstioPaths: nothing has to be taken out of the rules of the first releases of Istio, in a pod
// without KubeVirt. The relay needs no route_localnet on the guest's interface, which only KubeVirt sets.
func TestFirstIstioPaths(t *testing.T) {
	for mode, want := range map[plan.Mode]struct{ egress, ingress, plainIngress string }{
		plan.Rules:    {"sidecar, network from " + podIP, "sidecar, guest from 10.0.2.1", noAnswer},
		plan.NATProxy: {"proxy, sidecar, network from " + podIP, "sidecar, proxy, guest from 10.0.2.1", "sidecar, proxy, guest from 10.0.2.1"},
	} {
		t.Run(string(mode), func(t *testing.T) {
			l := newLab(t, world{})
			l.pod.Run(t, firstIstio, "iptables-restore")
			l.serve(l.pod, istioUID, "tcp", []string{"0.0.0.0"}, "15010", func(_ net.Addr, orig netip.AddrPort) string {
				if orig.Addr().String() == podIP { // Envoy takes the application to listen on loopback
					orig = netip.AddrPortFrom(loopback4, orig.Port())
				}
				return "sidecar, " + l.ask(l.pod, istioUID, "tcp", "", orig.String(), answerIn)
			})
			l.serve(l.pod, appUID, "tcp", []string{podIP}, "5900", func(net.Addr, netip.AddrPort) string { return "console" })

			p := examplePlan(mode)
			p.Guest.IPv6 = netip.Addr{}
			p.Mesh = plan.Mesh{OutboundPort: 15010, InboundPort: 15010, UID: istioUID, GID: istioUID, OwnPorts: []uint16{5900}, DialsLoopback: true}
			p.Outbound = plan.Outbound{IncludeCIDRs: prefixes("10.244.2.0/24")}
			p.Inbound = plan.Inbound{All: true}
			r := build(t, p, Pod{})
			l.try(r, []path{
				{fromGuest, appUID, "tcp", away + ":80", want.egress, "an included address goes", noAnswer},
				{fromNetwork, appUID, "tcp", podIP + ":80", want.ingress, "the mesh's proxy lets it in", "sidecar, refused"},
				{fromNetwork, appUID, "tcp", podIP + ":5900", "console", "the mesh's own port stays", "sidecar, refused"},
				{fromGuest, appUID, "tcp", podIP + ":5900", noAnswer, "the mesh's own ports are not", "console"},
				{fromPod, istioUID, "tcp", "127.0.0.1:15000", "admin from 127.0.0.1", "", "admin from 127.0.0.1"},
			})
			l.apply(r)
			l.pod.Sysctl(l, "ipv4/conf/k6t-eth0/route_localnet", "0")
			l.check(path{from: fromNetwork, uid: appUID, network: "tcp", to: podIP + ":80"}, want.plainIngress)
		})
	}
}

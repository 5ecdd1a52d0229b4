package rules

import (
	"strings"
	"testing"

	"github.com/meshvirt/meshvirt/pkg/nft"
	"github.com/meshvirt/meshvirt/pkg/plan"
	testlab "github.com/meshvirt/meshvirt/test/lab"
)

// A path is one question asked in a lab and the answer that the rules must bring about. Its last
// two fields are the proof that the check could fail: without the rules of that reason ("" is the
// whole table) the answer is another one.
type path struct {
	from    func(*lab) testlab.Netns
	uid     int
	network string
	to      string
	want    string
	without string
	instead string
}

func fromGuest(l *lab) testlab.Netns   { return l.guest }
func fromPod(l *lab) testlab.Netns     { return l.pod }
func fromNetwork(l *lab) testlab.Netns { return l.network }

// try asks with the ruleset, then without the rules that the path is to prove.
func (l *lab) try(r nft.Ruleset, paths []path) {
	for _, p := range paths {
		l.Run(p.network+" "+p.to, func(t *testing.T) {
			sub := *l
			sub.T = t
			sub.apply(r)
			sub.check(p, p.want)
			if p.want == noAnswer && sub.drops() == 0 {
				t.Errorf("no answer, but no rule dropped anything: want the guard to do it")
			}
			bare := without(r, p.without)
			if p.without != "" && bare.Rules() == r.Rules() {
				t.Fatalf("no rule has the reason %q", p.without)
			}
			sub.apply(bare)
			sub.check(p, p.instead)
		})
	}
}

func (l *lab) check(p path, want string) {
	l.Helper()
	patience := answerIn
	if want == noAnswer {
		patience = silence
	}
	if got := l.ask(p.from(l), p.uid, p.network, "", p.to, patience); got != want {
		l.Errorf("asked %s: got %q, want %q", p.to, got, want)
	}
}

func build(t *testing.T, p plan.Plan, pod Pod) nft.Ruleset {
	t.Helper()
	r, err := Build(p, pod)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// The worlds: Istio's recorded rules with DNS capture, KubeVirt's in both of its modes.
var (
	plain          = world{istio: "dual-stack-env-dns", kubevirt: "v1.9.0-noistio-noports-dual", ipv6: true}
	istioMode      = world{istio: "dual-stack-env-dns", kubevirt: "v1.9.0-istio-noports-dual", ipv6: true}
	plainPorts     = world{istio: "dual-stack-env-dns", kubevirt: "v1.9.0-noistio-ports-22-80-dual", ipv6: true}
	istioModePorts = world{istio: "dual-stack-env-dns", kubevirt: "v1.9.0-istio-ports-22-80-dual", ipv6: true}
	onlyIPv4       = world{istio: "dns-env", kubevirt: "v1.9.0-noistio-noports-dual"}
	onlyIPv4Istio  = world{istio: "dns-env", kubevirt: "v1.9.0-istio-ports-22-80-dual"}
	allDNS         = world{istio: "dns-capture-all", kubevirt: "v1.9.0-noistio-noports-dual"}
)

// dnsPlan is examplePlan with DNS capture and some exclusions.
func dnsPlan(mode plan.Mode) plan.Plan {
	p := examplePlan(mode)
	captureDNS(&p, false)
	p.Outbound.ExcludePorts = []uint16{3306}
	p.Outbound.ExcludeCIDRs = prefixes("10.244.3.0/24", "fd00:10:244:3::/64")
	p.Inbound.ExcludePorts = []uint16{22}
	return p
}

var dualPod = Pod{IPv6: true, Nameservers: exampleServers}

func TestRulesPaths(t *testing.T) {
	for name, w := range map[string]world{"plain": plain, "plain without bridge netfilter": plain.withoutBridgeNF()} {
		t.Run(name, func(t *testing.T) {
			newLab(t, w).try(build(t, dnsPlan(plan.Rules), dualPod), []path{
				{fromGuest, appUID, "tcp", away + ":80", "outbound, network from " + podIP, "TCP goes into the mesh", "inbound, no route"},
				{fromGuest, appUID, "tcp", "[" + away6 + "]:80", "outbound, network from " + podIP6, "TCP goes into the mesh", noAnswer},
				{fromGuest, appUID, "tcp", away + ":3306", "network from " + podIP, "an excluded port goes straight out", "outbound, network from " + podIP},
				{fromGuest, appUID, "tcp", "[" + away6 + "]:3306", "network from " + podIP6, "an excluded port goes straight out", "outbound, network from " + podIP6},
				{fromGuest, appUID, "tcp", excluded + ":80", "network from " + podIP, "an excluded address goes straight out", "outbound, network from " + podIP},
				{fromGuest, appUID, "tcp", "[" + excluded6 + "]:80", "network from " + podIP6, "an excluded address goes straight out", "outbound, network from " + podIP6},
				{fromGuest, appUID, "tcp", podIP + ":80", "outbound, inbound, guest from 10.0.2.1", "the mesh's proxy lets it in", "outbound, inbound, refused"},
				{fromGuest, appUID, "tcp", "[" + podIP6 + "]:80", "outbound, inbound, guest from fd10:0:2::1", "the mesh's proxy lets it in", "outbound, inbound, refused"},

				{fromGuest, appUID, "udp", "10.96.0.10:53", "mesh DNS from 10.0.2.2", "DNS goes to the mesh", "cluster DNS from " + podIP},
				{fromGuest, appUID, "udp", "10.96.0.10:53", "mesh DNS from 10.0.2.2", "zone of the guest's query", noAnswer},
				{fromGuest, appUID, "udp", "10.96.0.10:53", "mesh DNS from 10.0.2.2", "zone of the mesh's answer", noAnswer},
				{fromGuest, appUID, "tcp", "10.96.0.10:53", "mesh DNS from 10.0.2.2", "DNS goes to the mesh", "outbound, cluster DNS from " + podIP},

				{fromNetwork, appUID, "tcp", podIP + ":80", "inbound, guest from 10.0.2.1", "TCP comes in through the mesh", "guest from 10.244.1.1"},
				{fromNetwork, appUID, "tcp", "[" + podIP6 + "]:80", "inbound, guest from fd10:0:2::1", "TCP comes in through the mesh", "guest from fd00:10:244:1::1"},
				{fromNetwork, appUID, "tcp", podIP + ":80", "inbound, guest from 10.0.2.1", "a guest cannot answer to the pod's loopback", noAnswer},
				{fromNetwork, appUID, "tcp", "[" + podIP6 + "]:80", "inbound, guest from fd10:0:2::1", "a guest cannot answer to the pod's loopback", noAnswer},
				{fromNetwork, appUID, "tcp", podIP + ":22", "guest from 10.244.1.1", "an excluded port goes straight to the guest", "inbound, guest from 10.0.2.1"},
				{fromNetwork, appUID, "tcp", "[" + podIP6 + "]:22", "guest from fd00:10:244:1::1", "an excluded port goes straight to the guest", "inbound, guest from fd10:0:2::1"},
				{fromNetwork, appUID, "tcp", podIP + ":15021", "health from 10.244.1.1", "the mesh's own port stays", "inbound, health from 127.0.0.6"},
				{fromNetwork, appUID, "tcp", "[" + podIP6 + "]:15021", "health from fd00:10:244:1::1", "the mesh's own port stays", "inbound, health from ::6"},

				{fromPod, appUID, "tcp", podIP + ":80", "guest from " + podIP, "the pod's processes find the guest", "refused"},
				{fromPod, appUID, "tcp", "[" + podIP6 + "]:80", "guest from " + podIP6, "the pod's processes find the guest", "refused"},
				{fromPod, appUID, "tcp", podIP + ":15021", "health from " + podIP, "", "health from " + podIP},
			})
		})
	}
}

// TestGuardPaths asks for what the guest must not reach, and what it still has to.
func TestGuardPaths(t *testing.T) {
	p := dnsPlan(plan.Rules)
	p.Outbound.ExcludePorts = append(p.Outbound.ExcludePorts, 8001)
	newLab(t, plain).try(build(t, p, dualPod), []path{
		{fromGuest, appUID, "tcp", "127.0.0.1:8001", noAnswer, "the pod's loopback is not for the guest", "admin from 10.0.2.2"},
		{fromGuest, appUID, "tcp", "[::6]:8001", noAnswer, "the pod's loopback is not for the guest", "admin from fd10:0:2::2"},
		{fromGuest, appUID, "tcp", "10.0.2.1:80", noAnswer, "the gateway serves nothing else", "outbound, inbound, guest from 10.0.2.1"},
		{fromGuest, appUID, "tcp", "[fd10:0:2::1]:80", noAnswer, "the gateway serves nothing else", "outbound, inbound, guest from fd10:0:2::1"},
		{fromGuest, appUID, "tcp", "[" + linkLocal + "%eth0]:80", noAnswer, "the gateway serves nothing else", "outbound, no route"},
		{fromGuest, appUID, "tcp", podIP + ":15021", noAnswer, "the mesh's own ports are not for the guest", "outbound, inbound, health from 127.0.0.6"},
		{fromGuest, appUID, "tcp", "[" + podIP6 + "]:15021", noAnswer, "the mesh's own ports are not for the guest", "outbound, inbound, health from ::6"},
		{fromGuest, appUID, "udp", podIP + ":7000", noAnswer, "the pod serves the guest nothing else", "pod from 10.0.2.2"},
		{fromGuest, appUID, "udp", "[" + podIP6 + "]:7000", noAnswer, "the pod serves the guest nothing else", "pod from fd10:0:2::2"},
		{fromGuest, appUID, "udp", "10.0.2.1:7000", noAnswer, "the pod serves the guest nothing else", "pod from 10.0.2.2"},
		{fromGuest, appUID, "udp", "10.0.2.1:67", "DHCP from 10.0.2.2", "KubeVirt's DHCP server", noAnswer},
		{fromGuest, appUID, "udp", "[fd10:0:2::1]:547", "DHCP from fd10:0:2::2", "KubeVirt's DHCPv6 server", noAnswer},
		{fromGuest, appUID, "ping", "10.0.2.1", "pong", "", "pong"},
		{fromGuest, appUID, "ping", "fd10:0:2::1", "pong", "", "pong"},
		{fromGuest, appUID, "ping", away6, "pong", "", "pong"},
	})
}

// TestGuardAlone is mode native: Istio's own redirect of the interface is there, and only the guard
// and what keeps DNS alive are ours.
func TestGuardAlone(t *testing.T) {
	p := examplePlan(plan.Native)
	p.Mesh.DNS = &plan.DNS{Port: 15053}
	newLab(t, istioMode.withNative()).try(build(t, p, dualPod), []path{
		{fromGuest, appUID, "tcp", "127.0.0.1:15000", noAnswer, "", "outbound, admin from 127.0.0.1"},
		{fromGuest, appUID, "tcp", "10.0.2.1:15021", noAnswer, "", "outbound, inbound, health from 127.0.0.6"},
		{fromGuest, appUID, "tcp", podIP + ":15021", noAnswer, "the mesh's own ports are not for the guest", "outbound, guest from " + podIP},
		{fromGuest, appUID, "tcp", away + ":80", "outbound, network from " + podIP, "", "outbound, network from " + podIP},
		{fromNetwork, appUID, "tcp", podIP + ":80", "inbound, guest from 10.0.2.1", "", "inbound, guest from 10.0.2.1"},
		// Istio puts answers from the pod's servers into a zone; KubeVirt's masquerade of the query is in none.
		{fromGuest, appUID, "udp", "10.96.0.10:53", "cluster DNS from " + podIP, "zone of", noAnswer},
		{fromGuest, appUID, "udp", "[fd00:10:96::a]:53", "cluster DNS from " + podIP6, "zone of", noAnswer},
		{fromGuest, appUID, "udp", "[fd00:10:96::a]:53", "cluster DNS from " + podIP6, "zone of the answer", noAnswer},
		{fromPod, istioUID, "udp", "[fd00:10:96::a]:53", "cluster DNS from " + podIP6, "", "cluster DNS from " + podIP6},
	})
}

// TestPortsListed is for a VM that lists its ports: others stay with the pod, which refuses them.
func TestPortsListed(t *testing.T) {
	for name, w := range map[string]world{"plain": plainPorts, "istio mode": istioModePorts} {
		t.Run(name, func(t *testing.T) {
			p := dnsPlan(plan.Rules)
			p.Guest.TCP = []plan.PortRange{plan.Port(22), plan.Port(80)}
			p.Guest.UDP = []plan.PortRange{plan.Port(9999)}
			l := newLab(t, w)
			l.try(build(t, p, dualPod), []path{
				{fromNetwork, appUID, "tcp", podIP + ":80", "inbound, guest from 10.0.2.1", "the mesh's proxy lets it in", map[string]string{"plain": "inbound, refused", "istio mode": "inbound, guest from 10.0.2.1"}[name]},
				{fromNetwork, appUID, "tcp", "[" + podIP6 + "]:80", "inbound, guest from fd10:0:2::1", "the mesh's proxy lets it in", "inbound, refused"},
				{fromNetwork, appUID, "udp", podIP + ":9999", "guest from 10.244.1.1", "no mesh takes UDP", "refused"},
				{fromNetwork, appUID, "udp", "[" + podIP6 + "]:9999", "guest from fd00:10:244:1::1", "no mesh takes UDP", "refused"},
				// The guest's DNS over IPv6 is not captured; without zones its answer would be lost.
				{fromGuest, appUID, "udp", "[fd00:10:96::a]:53", "cluster DNS from " + podIP6, "zone of the guest's query", noAnswer},
				{fromGuest, appUID, "udp", "[fd00:10:96::a]:53", "cluster DNS from " + podIP6, "zone of the answer", noAnswer},
			})
			l.apply(build(t, p, dualPod))
			l.check(path{fromNetwork, appUID, "tcp", podIP + ":81", "", "", ""}, "inbound, refused")
			p.Guest.TCP = append(p.Guest.TCP, plan.Port(81))
			l.apply(build(t, p, dualPod))
			l.check(path{fromNetwork, appUID, "tcp", podIP + ":81", "", "", ""}, "inbound, guest from 10.0.2.1")
		})
	}
}

// TestMeshQueryZone: with all UDP ports the guest's, an answer to the mesh's DNS proxy that is not
// seen as an answer would go to the guest.
func TestMeshQueryZone(t *testing.T) {
	newLab(t, istioMode).try(build(t, dnsPlan(plan.Rules), dualPod), []path{
		{fromPod, istioUID, "udp", "[fd00:10:96::a]:53", "cluster DNS from " + podIP6, "zone of the mesh's own query", noAnswer},
		{fromPod, istioUID, "udp", "10.96.0.10:53", "cluster DNS from " + podIP, "", "cluster DNS from " + podIP},
		{fromPod, appUID, "udp", "10.96.0.10:53", "mesh DNS from " + podIP, "", "mesh DNS from " + podIP},
		{fromNetwork, appUID, "udp", podIP + ":9999", "guest from 10.244.1.1", "no mesh takes UDP", "refused"},
	})
}

// includesPlan sends only what is listed through the mesh, both ways.
func includesPlan() plan.Plan {
	p := examplePlan(plan.Rules)
	p.Outbound = plan.Outbound{IncludeCIDRs: prefixes("10.244.2.0/24", "fd00:10:244:2::/64"), IncludePorts: []uint16{81}, ExcludePorts: []uint16{3306}}
	p.Inbound = plan.Inbound{IncludePorts: []uint16{80}}
	return p
}

func TestIncludes(t *testing.T) {
	newLab(t, istioMode).try(build(t, includesPlan(), dualPod), []path{
		{fromGuest, appUID, "tcp", away + ":80", "outbound, network from " + podIP, "an included address", "network from " + podIP},
		{fromGuest, appUID, "tcp", "[" + away6 + "]:80", "outbound, network from " + podIP6, "an included address", "network from " + podIP6},
		{fromGuest, appUID, "tcp", excluded + ":81", "outbound, network from " + podIP, "an included port goes", "network from " + podIP},
		{fromGuest, appUID, "tcp", away + ":3306", "network from " + podIP, "an excluded port", "outbound, network from " + podIP},
		{fromGuest, appUID, "tcp", excluded + ":80", "network from " + podIP, "what is not included", "inbound, no route"},
		{fromGuest, appUID, "tcp", "[" + excluded6 + "]:80", "network from " + podIP6, "what is not included", noAnswer},
		{fromNetwork, appUID, "tcp", podIP + ":80", "inbound, guest from 10.0.2.1", "", "inbound, guest from 10.0.2.1"},
		{fromNetwork, appUID, "tcp", podIP + ":81", "guest from 10.244.1.1", "a port that is not included", "inbound, guest from 10.0.2.1"},
		{fromNetwork, appUID, "tcp", "[" + podIP6 + "]:81", "guest from fd00:10:244:1::1", "a port that is not included", "inbound, guest from fd10:0:2::1"},
	})
}

func TestIncludesInbound(t *testing.T) {
	newLab(t, plain).try(build(t, includesPlan(), dualPod), []path{
		{fromNetwork, appUID, "tcp", podIP + ":80", "inbound, guest from 10.0.2.1", "an included port comes in", "guest from 10.244.1.1"},
	})
}

// TestWrittenFirst: the table decides first although Istio's and KubeVirt's were made later.
func TestWrittenFirst(t *testing.T) {
	w := plain
	w.first = build(t, dnsPlan(plan.Rules), dualPod)
	l := newLab(t, w)
	l.check(path{from: fromGuest, network: "tcp", to: away + ":80"}, "outbound, network from "+podIP)
	l.check(path{from: fromNetwork, network: "tcp", to: podIP + ":80"}, "inbound, guest from 10.0.2.1")
	l.check(path{from: fromNetwork, network: "tcp", to: podIP + ":22"}, "guest from 10.244.1.1")
	l.check(path{from: fromGuest, network: "udp", to: "10.96.0.10:53"}, "mesh DNS from 10.0.2.2")
	l.check(path{from: fromGuest, network: "tcp", to: "10.0.2.1:80"}, noAnswer)
}

// TestMeshWithoutIPv6Inbound: the guest is reached by IPv6 as any pod of such a mesh is, past it.
func TestMeshWithoutIPv6Inbound(t *testing.T) {
	p := dnsPlan(plan.Rules)
	p.Guest.TCP, p.Inbound.ExcludePorts = []plan.PortRange{plan.Port(80)}, nil
	l := newLab(t, onlyIPv4Istio)
	l.try(build(t, p, Pod{Nameservers: exampleServers}), []path{
		{fromNetwork, appUID, "tcp", "[" + podIP6 + "]:80", "guest from fd00:10:244:1::1", "the mesh does not serve this family", "refused"},
		{fromNetwork, appUID, "tcp", podIP + ":80", "inbound, guest from 10.0.2.1", "", "inbound, guest from 10.0.2.1"},
	})
	l.apply(build(t, p, Pod{Nameservers: exampleServers}))
	l.check(path{from: fromNetwork, network: "tcp", to: "[" + podIP6 + "]:81"}, "refused")
}

// TestMeshWithoutIPv6: IPv6 stays as KubeVirt has it, while IPv4 goes through the mesh.
func TestMeshWithoutIPv6(t *testing.T) {
	l := newLab(t, onlyIPv4)
	l.try(build(t, dnsPlan(plan.Rules), Pod{Nameservers: exampleServers}), []path{
		{fromGuest, appUID, "tcp", away + ":80", "outbound, network from " + podIP, "", "inbound, no route"},
		{fromGuest, appUID, "tcp", "[" + away6 + "]:80", "network from " + podIP6, "", "network from " + podIP6},
		{fromNetwork, appUID, "tcp", podIP + ":80", "inbound, guest from 10.0.2.1", "", "guest from 10.244.1.1"},
		{fromNetwork, appUID, "tcp", "[" + podIP6 + "]:80", "guest from fd00:10:244:1::1", "", "guest from fd00:10:244:1::1"},
		{fromGuest, appUID, "tcp", "[fd10:0:2::1]:15021", noAnswer, "", "health from fd10:0:2::2"},
		{fromGuest, appUID, "udp", "10.96.0.10:53", "mesh DNS from 10.0.2.2", "zone of the mesh's answer", noAnswer},
		{fromGuest, appUID, "udp", "[fd00:10:96::a]:53", "cluster DNS from " + podIP6, "", "cluster DNS from " + podIP6},
	})
	l.apply(build(t, dnsPlan(plan.Rules), dualPod)) // told that it served IPv6, it would be redirected
	l.check(path{fromGuest, appUID, "tcp", "[" + away6 + "]:80", "", "", ""}, "outbound, network from "+podIP6)
}

func TestAllDNS(t *testing.T) {
	p := examplePlan(plan.Rules)
	p.Mesh.DNS = &plan.DNS{Port: 15053, All: true}
	newLab(t, allDNS).try(build(t, p, Pod{}), []path{
		{fromGuest, appUID, "udp", "10.96.0.10:53", "mesh DNS from 10.0.2.2", "DNS goes to the mesh", "cluster DNS from " + podIP},
		{fromGuest, appUID, "udp", away + ":53", "mesh DNS from 10.0.2.2", "zone of", noAnswer},
		{fromGuest, appUID, "tcp", away + ":53", "mesh DNS from 10.0.2.2", "DNS goes to the mesh", "outbound, refused"},
		{fromGuest, appUID, "udp", "10.0.2.1:53", "mesh DNS from 10.0.2.2", "DNS goes to the mesh", noAnswer},
	})
}

func TestNATProxyPaths(t *testing.T) {
	for name, w := range map[string]world{"plain": plain, "istio mode": istioMode} {
		t.Run(name, func(t *testing.T) {
			paths := []path{
				{fromGuest, appUID, "tcp", away + ":80", "proxy, outbound, network from " + podIP, "by our proxy", "inbound, no route"},
				{fromGuest, appUID, "tcp", "[" + away6 + "]:80", "proxy, outbound, network from " + podIP6, "by our proxy", noAnswer},
				{fromGuest, appUID, "tcp", away + ":3306", "network from " + podIP, "an excluded port goes straight out", "proxy, outbound, network from " + podIP},
				{fromGuest, appUID, "udp", "10.96.0.10:53", "forwarder, mesh DNS from " + podIP, "asked again by our proxy", "cluster DNS from " + podIP},
				{fromGuest, appUID, "udp", "[fd00:10:96::a]:53", "forwarder, mesh DNS from " + podIP6, "asked again by our proxy", "cluster DNS from " + podIP6},
				{fromGuest, appUID, "udp", "10.96.0.10:53", "forwarder, mesh DNS from " + podIP, "zone of our proxy's answer", noAnswer},
				{fromGuest, appUID, "udp", "[fd00:10:96::a]:53", "forwarder, mesh DNS from " + podIP6, "zone of our proxy's answer", noAnswer},
				{fromGuest, appUID, "tcp", "10.96.0.10:53", "proxy, mesh DNS from " + podIP, "", "inbound, no route"},
				{fromGuest, appUID, "tcp", "[fd00:10:96::a]:53", "proxy, mesh DNS from " + podIP6, "", noAnswer},
				{fromGuest, appUID, "tcp", "[" + podIP6 + "]:80", "outbound, inbound, proxy, guest from fd10:0:2::1", "without our proxy", "proxy, guest from " + podIP6},
				{fromNetwork, appUID, "tcp", podIP + ":80", "inbound, proxy, guest from 10.0.2.1", "our proxy's call to the guest", "inbound, proxy, outbound, guest from 10.0.2.1"},
				{fromNetwork, appUID, "tcp", "[" + podIP6 + "]:80", "inbound, proxy, guest from fd10:0:2::1", "our proxy's call to the guest", "inbound, proxy, outbound, guest from fd10:0:2::1"},
				{fromNetwork, appUID, "tcp", "[" + podIP6 + "]:80", "inbound, proxy, guest from fd10:0:2::1", "the mesh's proxy lets it in", "inbound, refused"},
				{fromNetwork, appUID, "tcp", podIP + ":22", "guest from 10.244.1.1", "", "guest from 10.244.1.1"},
				{fromNetwork, appUID, "udp", podIP + ":9999", "guest from 10.244.1.1", "no mesh takes UDP", map[string]string{"plain": "guest from 10.244.1.1", "istio mode": "refused"}[name]},
			}
			if name == "plain" { // in its Istio mode KubeVirt itself sends calls to the pod's IPv4 address to the guest
				paths = append(paths,
					path{fromGuest, appUID, "tcp", podIP + ":80", "outbound, inbound, proxy, guest from 10.0.2.1", "without our proxy", "proxy, guest from " + podIP},
					path{fromGuest, appUID, "tcp", podIP + ":15120", noAnswer, "the mesh's own ports are not", "outbound, inbound, status from 127.0.0.6"},
					path{fromNetwork, appUID, "tcp", podIP + ":15120", "status from 10.244.1.1", "the mesh's own port stays", "inbound, status from 127.0.0.6"},
					path{fromPod, appUID, "tcp", podIP + ":80", "guest from " + podIP, "the pod's processes find the guest", "refused"})
			}
			newLab(t, w).try(build(t, dnsPlan(plan.NATProxy), dualPod), paths)
		})
	}
}

// TestDNSByProxy: the guest's DNS is asked again also where all else is excluded from the mesh.
func TestDNSByProxy(t *testing.T) {
	for _, mode := range []plan.Mode{plan.NATProxy, plan.TProxy} {
		t.Run(string(mode), func(t *testing.T) {
			p := dnsPlan(mode)
			p.Outbound.ExcludePorts = []uint16{53}
			newLab(t, plain).withRelayRoute().try(build(t, p, dualPod), []path{
				{fromGuest, appUID, "udp", "10.96.0.10:53", "forwarder, mesh DNS from " + podIP, "asked again by our proxy", "cluster DNS from " + podIP},
				{fromGuest, appUID, "tcp", "10.96.0.10:53", "proxy, mesh DNS from " + podIP, "the guest's DNS over TCP", "cluster DNS from " + podIP},
				{fromGuest, appUID, "tcp", "[fd00:10:96::a]:53", "proxy, mesh DNS from " + podIP6, "the guest's DNS over TCP", "cluster DNS from " + podIP6},
			})
		})
	}
}

// TestAllDNSByProxy: whatever its server, where the mesh takes all.
func TestAllDNSByProxy(t *testing.T) {
	for _, mode := range []plan.Mode{plan.NATProxy, plan.TProxy} {
		t.Run(string(mode), func(t *testing.T) {
			p := examplePlan(mode)
			captureDNS(&p, true)
			newLab(t, allDNS).withRelayRoute().try(build(t, p, Pod{Nameservers: exampleServers}), []path{
				{fromGuest, appUID, "udp", away + ":53", "forwarder, mesh DNS from " + podIP, "asked again by our proxy", noAnswer},
				{fromGuest, appUID, "udp", "10.0.2.1:53", "forwarder, mesh DNS from " + podIP, "asked again by our proxy", noAnswer},
				{fromGuest, appUID, "tcp", away + ":53", "proxy, mesh DNS from " + podIP, "", "inbound, no route"},
				{fromGuest, appUID, "tcp", "10.0.2.1:53", noAnswer, "the gateway serves nothing else", "outbound, refused"},
			})
		})
	}
}

// withRelayRoute makes the policy route of mode tproxy, as package keeper does.
func (l *lab) withRelayRoute() *lab {
	l.Helper()
	for _, family := range []string{"-4", "-6"} {
		l.pod.Run(l, `
			route add local default dev lo table 15101
			rule add fwmark 0x20000/0x20000 lookup 15101 priority 15101`, "ip", family, "-batch", "-")
	}
	return l
}

// TestNoNameserver: there is nobody to ask, so that queries are left as they are.
func TestNoNameserver(t *testing.T) {
	p := examplePlan(plan.NATProxy)
	captureDNS(&p, true)
	if r := build(t, p, Pod{}).String(); strings.Contains(r, "1515") {
		t.Errorf("queries go to a forwarder that cannot be:\n%s", r)
	}
}

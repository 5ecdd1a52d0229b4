// Package netlab is a lab of network namespaces for path tests: a virt-launcher-like pod with a
// virtual machine and a sidecar's stand-in, a node it is on, and a peer to talk to. What Istio and
// KubeVirt do to the pod's namespace is replayed from recordings of the real programs; MeshVirt's
// own containers run as their specification says.
//
//	peer 10.244.2.20 ── node 10.244.2.1, 10.244.1.1 ── eth0 10.244.1.17 pod 10.0.2.1 k6t-eth0 ── tap0 ── guest 10.0.2.2
//
// A lab is built in the order in which a real pod is: New (the CNI's work), IstioInit, RunInit and
// Start for our containers, StartSidecar, KubeVirt, StartGuest. Then Check sends traffic. Each step
// may be left out or come elsewhere. Labs do not disturb each other and leave nothing behind.
package netlab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/meshvirt/meshvirt/test/e2e/netlab/agent"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/container"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/netns"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/sidecar"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/vm"
)

// Names of devices in the pod.
const (
	PodLink = "eth0"
	Bridge  = "k6t-eth0"
	Tap     = vm.TapName
)

// bridgeMAC is the hardware address that KubeVirt gives the bridge, and so the guest's gateway's.
const bridgeMAC = "02:00:00:00:00:00"

// Addresses. Those of the pod and the guest are the recordings'.
var (
	PodIP4      = netip.MustParseAddr("10.244.1.17")
	PodIP6      = netip.MustParseAddr("fd00:10:244:1::11")
	GuestIP4    = netip.MustParseAddr("10.0.2.2")
	GuestIP6    = netip.MustParseAddr("fd10:0:2::2")
	BridgeIP4   = netip.MustParseAddr("10.0.2.1")
	BridgeIP6   = netip.MustParseAddr("fd10:0:2::1")
	NodeIP4     = netip.MustParseAddr("10.244.1.1")
	NodeIP6     = netip.MustParseAddr("fd00:10:244:1::1")
	PeerIP4     = netip.MustParseAddr("10.244.2.20")
	PeerIP6     = netip.MustParseAddr("fd00:10:244:2::20")
	ServiceIP4  = netip.MustParseAddr("10.96.5.5") // an address of a service, served by the peer
	ServiceIP6  = netip.MustParseAddr("fd00:10:96::5")
	DNSIP4      = netip.MustParseAddr("10.96.0.10") // the cluster's DNS, served by the peer
	DNSIP6      = netip.MustParseAddr("fd00:10:96::a")
	ProbeIP4    = netip.MustParseAddr("169.254.7.127") // what istio-cni makes of the node's address in an ambient mesh
	ProbeIP6    = netip.MustParseAddr("fd16:9254:7127:1337:ffff:ffff:ffff:ffff")
	OutsideIP4  = netip.MustParseAddr("203.0.113.10") // of nobody in the cluster, for ServeAt
	OutsideIP6  = netip.MustParseAddr("2001:db8:113::10")
	ExcludedIP4 = netip.MustParseAddr("198.51.100.10") // in ExcludedCIDR, served by the peer
	// ExcludedCIDR is for tests that exclude a range from the mesh.
	ExcludedCIDR = netip.MustParsePrefix("198.51.100.0/24")
	// ClusterDNSAnswer is what the cluster's DNS says to every question; the sidecar says sidecar.DNSAnswer.
	ClusterDNSAnswer = netip.MustParseAddr("192.0.2.53")
	// MeshDNSAnswer is what the mesh's DNS proxy says.
	MeshDNSAnswer = sidecar.DNSAnswer
)

// Ports on which peer and guest serve.
const (
	HTTPPort     = 80   // agent.Echo and agent.HTTP
	AppPort      = 8080 // the same
	ExcludedPort = 3306 // the same, for tests that exclude a port from the mesh
	SSHPort      = 22   // agent.Banner
	UDPPort      = 9999
)

// launcherUID is the user of virt-launcher's own processes.
const launcherUID = 107

// Options shape a lab. The zero value is an IPv4 pod with a guest that is a namespace.
type Options struct {
	// DualStack gives the pod IPv6 too, IPv6Only that alone: it then has IPv4 on its loopback device only.
	DualStack, IPv6Only bool
	// VM is the guest. Nil means that StartGuest makes a network namespace with an agent in it the
	// guest, which is cheaper. A machine can be the guest of one lab at a time.
	VM *vm.VM
	// Pod is what containers are of: its security context and name count.
	Pod *corev1.Pod
	// Image is the root file system of containers.
	Image container.Image
	// IstioIptables is the path of a real istio-iptables or pilot-agent, which IstioInit then runs in
	// place of the recordings. Empty means the environment variable MESHVIRT_ISTIO_IPTABLES.
	IstioIptables string
	// Nameservers are those of the pod's /etc/resolv.conf. None means the cluster's DNS, in the pod's families.
	Nameservers []netip.Addr
	// Quiet has the sidecar that RunPod starts tell of no connection, so that it is not what a benchmark
	// measures. Hops and Via of results then lack it.
	Quiet bool
	// PodLink is the pod's interface, after which KubeVirt names the bridge. Empty means the constants
	// PodLink and Bridge.
	PodLink string
	// VMNetwork4 and VMNetwork6 are the VMI's vmNetworkCIDR and vmIPv6NetworkCIDR. Invalid means KubeVirt's
	// defaults, and so the constants of gateway and guest.
	VMNetwork4, VMNetwork6 netip.Prefix
	// Program is labnode. Nil means that it is built.
	Program *os.File
	// Timeout bounds one attempt of a flow. Zero means 2 seconds.
	Timeout time.Duration
}

// Lab is a running lab.
type Lab struct {
	Options
	// The agents. Guest is nil before StartGuest.
	Node, Peer, Pod, Guest *agent.Client

	node, peer, pod, guest *netns.Namespace
	program                *os.File
	log                    *sidecar.Log
	ports                  map[uint16]string // names of processes in the pod
	containers             []*container.Process
	attached               bool
	speaker                string         // the process that speaks for the guest, in place of an interface
	known                  map[entry]bool // tracked connections of earlier flows
	checking               sync.Mutex
	closers                []func()
}

// New makes node, peer and pod, with the pod's network as a CNI plugin leaves it: eth0 and routes.
func New(ctx context.Context, o Options) (*Lab, error) {
	if err := netns.Check(); err != nil {
		return nil, err
	}
	if o.Timeout == 0 {
		o.Timeout = 2 * time.Second
	}
	if o.IstioIptables == "" {
		o.IstioIptables = os.Getenv("MESHVIRT_ISTIO_IPTABLES")
	}
	if o.PodLink == "" {
		o.PodLink = PodLink
	}
	if !o.VMNetwork4.IsValid() {
		o.VMNetwork4 = netip.PrefixFrom(GuestIP4, 24).Masked()
	}
	if !o.VMNetwork6.IsValid() {
		o.VMNetwork6 = netip.PrefixFrom(GuestIP6, 120).Masked()
	}
	l := &Lab{Options: o, ports: map[uint16]string{}, known: map[entry]bool{}}
	if err := l.build(ctx); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

func (l *Lab) build(ctx context.Context) (err error) {
	if l.program = l.Program; l.program == nil {
		if l.program, err = Build(ctx, "test/e2e/netlab/labnode"); err != nil {
			return err
		}
	}
	for _, h := range []struct {
		ns   **netns.Namespace
		name string
	}{{&l.node, "node"}, {&l.peer, "peer"}, {&l.pod, "pod"}} {
		if *h.ns, err = l.namespace(h.name); err != nil {
			return err
		}
	}
	if err := l.cable(); err != nil {
		return fmt.Errorf("connect node, peer and pod: %w", err)
	}
	if err := l.timeTracked(); err != nil {
		return err
	}
	for _, h := range []struct {
		client **agent.Client
		ns     *netns.Namespace
		uid    uint32
	}{{&l.Node, l.node, 0}, {&l.Peer, l.peer, 0}, {&l.Pod, l.pod, launcherUID}} {
		if *h.client, err = l.agent(h.ns, h.uid); err != nil {
			return err
		}
	}
	any6, echo := netip.IPv6Unspecified(), agent.Echo
	servers := []agent.Listen{
		{Network: "tcp", Addr: netip.AddrPortFrom(any6, HTTPPort), Kind: echo},
		{Network: "tcp", Addr: netip.AddrPortFrom(any6, AppPort), Kind: echo},
		{Network: "tcp", Addr: netip.AddrPortFrom(any6, ExcludedPort), Kind: echo},
		{Network: "tcp", Addr: netip.AddrPortFrom(any6, SSHPort), Kind: agent.Banner},
	}
	for _, a := range []netip.Addr{PeerIP4, PeerIP6, ServiceIP4, ServiceIP6, ExcludedIP4} {
		servers = append(servers, agent.Listen{Network: "udp", Addr: netip.AddrPortFrom(a, UDPPort), Kind: echo})
	}
	for _, a := range []netip.Addr{DNSIP4, DNSIP6} {
		for _, network := range []string{"udp", "tcp"} {
			servers = append(servers, agent.Listen{Network: network, Addr: netip.AddrPortFrom(a, 53), Kind: agent.DNS, Answer: ClusterDNSAnswer})
		}
	}
	return l.Peer.Listen(ctx, servers...)
}

// namespace makes one that Close closes.
func (l *Lab) namespace(name string) (*netns.Namespace, error) {
	ns, err := netns.New(name)
	if err != nil {
		return nil, err
	}
	l.closers = append(l.closers, func() { ns.Close() })
	// Duplicate address detection would keep IPv6 from working for a second, and nobody else is there.
	if err := ns.Sysctl("ipv6/conf/default/accept_dad", "0"); err != nil {
		return nil, err
	}
	return ns, ns.Do(loopbackUp)
}

// agent starts an agent as a user in a namespace.
func (l *Lab) agent(ns *netns.Namespace, uid uint32) (*agent.Client, error) {
	conn, err := l.start(ns, syscall.Credential{Uid: uid, Gid: uid}, "agent", "-name", ns.Name())
	if err != nil {
		return nil, err
	}
	return agent.NewClient(conn), nil
}

// ResolvConf is /etc/resolv.conf of the pod's containers.
func (l *Lab) ResolvConf() string {
	servers := l.Nameservers
	if len(servers) == 0 {
		servers = pick(l, DNSIP4, DNSIP6)
	}
	var s string
	for _, a := range servers {
		s += "nameserver " + a.String() + "\n"
	}
	return s + "search default.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n"
}

// PodIPs are the pod's addresses.
func (l *Lab) PodIPs() []netip.Addr { return pick(l, PodIP4, PodIP6) }

// pick gives those of both that are of a family of the pod, IPv4 first.
func pick[T any](l *Lab, v4, v6 T) []T {
	switch {
	case l.IPv6Only:
		return []T{v6}
	case l.DualStack:
		return []T{v4, v6}
	}
	return []T{v4}
}

// carries reports whether the pod has the flow's family.
func (l *Lab) carries(f Flow) bool {
	return f.IPv6() && (l.DualStack || l.IPv6Only) || !f.IPv6() && !l.IPv6Only
}

// Ruleset is the pod's nftables ruleset as text, for people. Rules of legacy iptables are not in it.
func (l *Lab) Ruleset(ctx context.Context) (string, error) {
	return l.RunInPod(ctx, "", "nft", "list", "ruleset")
}

// Namespace is the pod's network namespace, for what the lab has no function for.
func (l *Lab) Namespace() *netns.Namespace { return l.pod }

// NamespaceOf is any host's, nil for a guest that is a machine or not there yet.
func (l *Lab) NamespaceOf(h Host) *netns.Namespace {
	return map[Host]*netns.Namespace{Node: l.node, Peer: l.peer, Pod: l.pod, Guest: l.guest}[h]
}

// Close ends the lab's processes and namespaces. A machine given in Options lives on.
func (l *Lab) Close() error {
	var errs []error
	if l.attached {
		errs = append(errs, l.VM.Detach(l.pod))
		l.attached = false
	}
	for _, c := range l.containers {
		c.Kill()
	}
	l.containers = nil
	for _, f := range slices.Backward(l.closers) {
		f()
	}
	l.closers = nil
	return errors.Join(errs...)
}

// BridgeName is the guest's bridge, as KubeVirt names it: a hashed name loses its "pod".
func (l *Lab) BridgeName() string {
	name := l.PodLink
	if digits, ok := strings.CutPrefix(name, "pod"); ok && len(digits) == 11 {
		name = digits
	}
	return "k6t-" + name
}

// gateways and guests are the first and second hosts of the VM's networks, with their lengths.
func (l *Lab) gateways() []netip.Prefix { return l.hosts(1) }
func (l *Lab) guests() []netip.Prefix   { return l.hosts(2) }

func (l *Lab) hosts(n int) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range pick(l, l.VMNetwork4, l.VMNetwork6) {
		a := p.Addr()
		for range n {
			a = a.Next()
		}
		out = append(out, netip.PrefixFrom(a, p.Bits()))
	}
	return out
}

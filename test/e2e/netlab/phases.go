package netlab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"

	"github.com/meshvirt/meshvirt/test/e2e/netlab/agent"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/container"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/istio"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/kubelet"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/kubevirt"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/netns"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/sidecar"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/vm"
)

// Backend is what loads Istio's rules into the kernel.
type Backend string

// The backends of iptables. Istio's native nftables need neither.
const (
	NFT    Backend = "nft" // iptables over nf_tables, the default
	Legacy Backend = "legacy"
)

// IstioInit is what an istio-init container of some version of Istio does when it is run with these
// arguments and environment variables. It gives the rules it wrote, which are empty if a real
// program wrote them.
func (l *Lab) IstioInit(ctx context.Context, version string, backend Backend, args []string, env map[string]string) (istio.Rules, error) {
	if l.IstioIptables != "" {
		return istio.Rules{}, l.realIstioInit(ctx, args, env)
	}
	if l.IPv6Only {
		args = istio.InIPv6(args)
	}
	r, err := istio.Derive(version, args, env)
	if err != nil {
		return r, err
	}
	return r, l.IstioRules(ctx, backend, r)
}

// IstioRules is IstioInit with the rules that it writes.
func (l *Lab) IstioRules(ctx context.Context, backend Backend, r istio.Rules) error {
	if err := l.load(ctx, backend, r); err != nil {
		return err
	}
	if r.Empty() {
		return nil
	}
	if r.TProxy {
		route := policyRoute{mark: istio.TProxyMark, table: istio.TProxyTable, priority: -1}
		if err := l.pod.Do(func() error { return route.add(r.DualStack) }); err != nil {
			return fmt.Errorf("policy route: %w", err)
		}
	}
	if !r.DualStack {
		return nil
	}
	// Envoy's source towards the application; 127.0.0.6 needs no address.
	return l.pod.Do(func() error { return configure("lo", []string{"::6/128"}, nil) })
}

// load puts Istio's rules into the pod.
func (l *Lab) load(ctx context.Context, backend Backend, r istio.Rules) error {
	if backend == "" {
		backend = NFT
	}
	if r.NFT != "" {
		if _, err := l.RunInPod(ctx, r.NFT, "nft", "-f", "-"); err != nil {
			return err
		}
	}
	for prefix, rules := range map[string]string{"iptables": r.IPv4, "ip6tables": r.IPv6} {
		if rules == "" {
			continue
		}
		if _, err := l.RunInPod(ctx, rules, prefix+"-"+string(backend)+"-restore", "--noflush"); err != nil {
			return err
		}
	}
	return nil
}

// IstioInitContainer is IstioInit for the container of an admitted pod: the version is its image's tag.
func (l *Lab) IstioInitContainer(ctx context.Context, backend Backend, c corev1.Container) (istio.Rules, error) {
	_, tag, ok := strings.Cut(c.Image[strings.LastIndexByte(c.Image, '/')+1:], ":")
	if !ok {
		return istio.Rules{}, fmt.Errorf("image %q has no tag that tells the version of Istio", c.Image)
	}
	env := map[string]string{}
	for _, e := range c.Env {
		env[e.Name] = e.Value
	}
	return l.IstioInit(ctx, tag, backend, append(c.Command[min(1, len(c.Command)):len(c.Command):len(c.Command)], c.Args...), env)
}

func (l *Lab) realIstioInit(ctx context.Context, args []string, env map[string]string) error {
	isSub := len(args) > 0 && args[0] == "istio-iptables"
	isAgent := strings.HasPrefix(filepath.Base(l.IstioIptables), "pilot-agent")
	switch {
	case isSub && !isAgent:
		args = args[1:]
	case !isSub && isAgent:
		args = append([]string{"istio-iptables"}, args...)
	}
	s := container.Spec{Args: append([]string{l.IstioIptables}, args...), Dir: "/", HostRoot: true, Privileged: true, ResolvConf: l.ResolvConf()}
	s.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	for k, v := range env {
		s.Env = append(s.Env, k+"="+v)
	}
	p, err := container.Start(s, container.Image{}, l.program, l.pod.Start)
	if err != nil {
		return err
	}
	l.containers = append(l.containers, p)
	return p.Wait(ctx)
}

// Start starts a container of the pod as its specification says. Close ends it.
func (l *Lab) Start(c corev1.Container) (*container.Process, error) {
	s, err := kubelet.Resolve(c, kubelet.Config{Pod: l.Options.Pod, PodIPs: l.PodIPs(), ResolvConf: l.ResolvConf(), Image: l.Image})
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", c.Name, err)
	}
	p, err := container.Start(s, l.Image, l.program, l.pod.Start)
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", c.Name, err)
	}
	l.containers = append(l.containers, p)
	for _, port := range c.Ports {
		l.ports[uint16(port.ContainerPort)] = c.Name
	}
	return p, nil
}

// RunInit runs an init container to its end. An end other than with code 0 is an error that has
// the container's output.
func (l *Lab) RunInit(ctx context.Context, c corev1.Container) error {
	p, err := l.Start(c)
	if err != nil {
		return err
	}
	if err := p.Wait(ctx); err != nil {
		p.Kill()
		return fmt.Errorf("init container %s: %w", c.Name, err)
	}
	return nil
}

// NamePort tells what listens on a port of the pod, for the hops in results.
func (l *Lab) NamePort(port uint16, name string) { l.ports[port] = name }

// StartSidecar starts the proxy's stand-in, and returns when it listens. Which families and whether
// DNS, an Envoy and its agent decide by the same settings as istio-init. A transparent one is root, as the
// injector has it.
func (l *Lab) StartSidecar(ctx context.Context, cfg sidecar.Config) error {
	cfg = cfg.WithDefaults()
	cfg.IPv6Only = l.IPv6Only
	user := syscall.Credential{Uid: cfg.UID, Gid: cfg.GID}
	if cfg.Transparent {
		user.Uid = 0
	}
	return l.startMesh(ctx, l.pod, "sidecar", user, cfg,
		sidecar.Admin, cfg.OutboundPort, cfg.InboundPort, sidecar.HBONE, sidecar.Agent, sidecar.Health, sidecar.DNSPort, sidecar.Prometheus)
}

// startMesh starts a stand-in of a mesh's proxy, and names its ports.
func (l *Lab) startMesh(ctx context.Context, ns *netns.Namespace, name string, user syscall.Credential, cfg sidecar.Config, ports ...uint16) error {
	if l.log != nil {
		return errors.New("the mesh's proxy runs already")
	}
	conn, err := l.start(ns, user, name, fmt.Sprintf("-ipv6=%t", cfg.IPv6), fmt.Sprintf("-ipv6-only=%t", cfg.IPv6Only), fmt.Sprintf("-dns=%t", cfg.DNS),
		fmt.Sprintf("-transparent=%t", cfg.Transparent), fmt.Sprintf("-quiet=%t", cfg.Quiet),
		fmt.Sprintf("-outbound=%d", cfg.OutboundPort), fmt.Sprintf("-inbound=%d", cfg.InboundPort))
	if err != nil {
		return err
	}
	l.log = sidecar.NewLog(conn, conn)
	for _, port := range ports {
		l.ports[port] = name
	}
	_, err = l.log.Events(ctx)
	return err
}

// KubeVirt does what virt-handler does for the masquerade binding before the guest starts: the
// bridge, the sysctls, and the rules of a recording (see kubevirt.Rules).
func (l *Lab) KubeVirt(ctx context.Context, recording string) error {
	rules, err := kubevirt.Rules(recording)
	if err != nil {
		return err
	}
	return l.KubeVirtRules(ctx, rules)
}

// KubeVirtRules is KubeVirt with the rules themselves.
func (l *Lab) KubeVirtRules(ctx context.Context, rules string) error {
	if err := l.pod.Do(l.addBridge); err != nil {
		return fmt.Errorf("add bridge %s: %w", l.BridgeName(), err)
	}
	sysctls := []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"}
	if !l.IPv6Only { // KubeVirt gives a bridge what the pod has: without IPv4 there is no gateway of it either
		sysctls = append(sysctls, "ipv4/conf/"+l.BridgeName()+"/route_localnet")
	}
	for _, s := range sysctls {
		if err := l.pod.Sysctl(s, "1"); err != nil {
			return err
		}
	}
	_, err := l.RunInPod(ctx, l.substitute(rules), "nft", "-f", "-")
	return err
}

// substitute puts the lab's names and addresses into a recording of KubeVirt's rules.
func (l *Lab) substitute(rules string) string {
	first := func(p netip.Prefix) netip.Addr { return p.Addr().Next() }
	return strings.NewReplacer(
		strconv.Quote(Bridge), strconv.Quote(l.BridgeName()), strconv.Quote(PodLink), strconv.Quote(l.PodLink),
		BridgeIP4.String(), first(l.VMNetwork4).String(), GuestIP4.String(), first(l.VMNetwork4).Next().String(),
		BridgeIP6.String(), first(l.VMNetwork6).String(), GuestIP6.String(), first(l.VMNetwork6).Next().String(),
	).Replace(rules)
}

func (l *Lab) addBridge() error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = l.BridgeName()
	mac, err := net.ParseMAC(bridgeMAC)
	if err != nil {
		return err
	}
	attrs.HardwareAddr = mac
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		return err
	}
	var addrs []string
	for _, p := range l.gateways() {
		addrs = append(addrs, p.String())
	}
	return configure(attrs.Name, addrs, nil)
}

// StartGuest connects the guest to the bridge and starts its servers.
func (l *Lab) StartGuest(ctx context.Context) error {
	var gateways []netip.Addr
	for _, p := range l.gateways() {
		gateways = append(gateways, p.Addr())
	}
	if err := l.connectGuest(); err != nil {
		return fmt.Errorf("connect the guest: %w", err)
	}
	return l.serveInGuest(ctx, l.guests(), gateways)
}

// serveInGuest gives the guest its addresses and starts its servers.
func (l *Lab) serveInGuest(ctx context.Context, addrs []netip.Prefix, gateways []netip.Addr) error {
	if err := l.Guest.Configure(ctx, agent.Configure{Link: vm.Link, Addrs: addrs, Gateways: gateways}); err != nil {
		return fmt.Errorf("configure the guest: %w", err)
	}
	var servers []agent.Listen
	for port, kind := range map[uint16]string{HTTPPort: agent.Echo, AppPort: agent.Echo, ExcludedPort: agent.Echo, SSHPort: agent.Banner} {
		servers = append(servers, agent.Listen{Network: "tcp", Addr: netip.AddrPortFrom(netip.IPv6Unspecified(), port), Kind: kind})
	}
	for _, a := range addrs {
		servers = append(servers, agent.Listen{Network: "udp", Addr: netip.AddrPortFrom(a.Addr(), UDPPort), Kind: agent.Echo})
	}
	return l.Guest.Listen(ctx, servers...)
}

func (l *Lab) connectGuest() error {
	if l.VM != nil {
		if err := l.VM.Attach(l.pod, l.BridgeName()); err != nil {
			return err
		}
		l.attached = true
		l.Guest = l.VM.Client
		return nil
	}
	var err error
	if l.guest, err = l.namespace("guest"); err != nil {
		return err
	}
	if err := veth(l.pod, Tap, l.guest, vm.Link); err != nil {
		return err
	}
	if err := l.pod.Do(func() error { return vm.Plug(Tap, l.BridgeName()) }); err != nil {
		return err
	}
	l.Guest, err = l.agent(l.guest, 0)
	return err
}

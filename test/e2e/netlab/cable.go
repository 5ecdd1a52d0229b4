package netlab

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/meshvirt/meshvirt/test/e2e/netlab/agent"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/netns"
)

// cable connects node, peer and pod and gives them addresses and routes.
func (l *Lab) cable() error {
	for key, value := range map[string]string{"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1"} {
		if err := l.node.Sysctl(key, value); err != nil {
			return err
		}
	}
	if err := veth(l.node, "pod", l.pod, l.PodLink); err != nil {
		return err
	}
	if err := veth(l.node, "peer", l.peer, "eth0"); err != nil {
		return err
	}
	podAddrs, podRoutes := pick(l, PodIP4.String()+"/24", PodIP6.String()+"/64"), pick(l, "0.0.0.0/0 10.244.1.1", "::/0 fd00:10:244:1::1")
	for _, h := range []struct {
		ns     *netns.Namespace
		link   string
		addrs  []string
		routes []string
	}{
		{l.node, "pod", []string{NodeIP4.String() + "/24", NodeIP6.String() + "/64"}, nil},
		{l.node, "peer", []string{"10.244.2.1/24", "fd00:10:244:2::1/64"},
			[]string{"10.96.0.0/12 10.244.2.20", "198.51.100.0/24 10.244.2.20", "fd00:10:96::/112 fd00:10:244:2::20"}},
		{l.pod, l.PodLink, podAddrs, podRoutes},
		{l.peer, "lo", []string{ServiceIP4.String() + "/32", ServiceIP6.String() + "/128", DNSIP4.String() + "/32", DNSIP6.String() + "/128", ExcludedIP4.String() + "/32"}, nil},
		{l.peer, "eth0", []string{PeerIP4.String() + "/24", PeerIP6.String() + "/64"}, []string{"0.0.0.0/0 10.244.2.1", "::/0 fd00:10:244:2::1"}},
	} {
		if err := h.ns.Do(func() error { return configure(h.link, h.addrs, h.routes) }); err != nil {
			return err
		}
	}
	return nil
}

func loopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

// veth connects two namespaces.
func veth(a *netns.Namespace, linkA string, b *netns.Namespace, linkB string) error {
	return a.Do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = linkA
		err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: linkB, PeerNamespace: netlink.NsFd(b.File().Fd())})
		if err != nil {
			return fmt.Errorf("add cable %s to %s in %s: %w", linkA, linkB, b.Name(), err)
		}
		return nil
	})
}

// configure brings a link up with addresses and routes, the latter written "destination gateway".
func configure(name string, addrs, routes []string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("link %s: %w", name, err)
	}
	for _, a := range addrs {
		if err := addAddr(link, netip.MustParsePrefix(a)); err != nil {
			return err
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("link %s up: %w", name, err)
	}
	for _, r := range routes {
		var dst, gw string
		if _, err := fmt.Sscan(r, &dst, &gw); err != nil {
			return err
		}
		route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: agent.IPNet(netip.MustParsePrefix(dst)), Gw: net.ParseIP(gw)}
		if err := netlink.RouteAdd(route); err != nil {
			return fmt.Errorf("route %s: %w", r, err)
		}
	}
	return nil
}

func addAddr(link netlink.Link, a netip.Prefix) error {
	if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: agent.IPNet(a), Flags: unix.IFA_F_NODAD}); err != nil {
		return fmt.Errorf("address %s on %s: %w", a, link.Attrs().Name, err)
	}
	return nil
}

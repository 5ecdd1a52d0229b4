package agent

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func (m *methods) Configure(c Configure, out *bool) error {
	*out = true
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	link, err := netlink.LinkByName(c.Link)
	if err != nil {
		return fmt.Errorf("link %s: %w", c.Link, err)
	}
	old, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return err
	}
	for _, a := range old {
		// The link-local address is the kernel's.
		if a.IP.IsLinkLocalUnicast() {
			continue
		}
		if err := netlink.AddrDel(link, &a); err != nil {
			return fmt.Errorf("remove %s: %w", a, err)
		}
	}
	for _, a := range c.Addrs {
		// Nobody else has the address: duplicate detection would only delay its use by a second.
		if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: IPNet(a), Flags: unix.IFA_F_NODAD}); err != nil {
			return fmt.Errorf("add %s: %w", a, err)
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return err
	}
	for _, gw := range c.Gateways {
		if err := netlink.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: gw.AsSlice(), Dst: defaultRoute(gw)}); err != nil {
			return fmt.Errorf("default route by %s: %w", gw, err)
		}
	}
	return nil
}

func defaultRoute(gw netip.Addr) *net.IPNet {
	if gw.Is4() {
		return IPNet(netip.MustParsePrefix("0.0.0.0/0"))
	}
	return IPNet(netip.MustParsePrefix("::/0"))
}

// IPNet is p in the form that the netlink package wants, host bits included.
func IPNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

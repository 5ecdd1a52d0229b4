// Package bridge finds out in the running pod what admission can only assume: which bridge KubeVirt's
// masquerade binding has made, after which interface of the pod, and which addresses the guest has
// behind it. A Settler then says what follows for a plan, and where the pod contradicts it.
//
// It needs no capability. The rules' watcher and the relay use the same code, so that they agree.
package bridge

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
)

// A Bridge is one of KubeVirt's masquerade binding.
type Bridge struct {
	// Name is k6t- and the pod interface's name, without the "pod" that a hashed name begins with.
	Name string
	// PodInterface is the interface of the pod that the bridge stands behind.
	PodInterface string
	// IPv4 and IPv6 are the guest's addresses, each invalid if the bridge has no gateway's address of its
	// family. KubeVirt gives the bridge the first host of the VM's network, and the guest the second.
	IPv4, IPv6 netip.Addr
}

// Found is what Find found.
type Found struct {
	// Bridges are those of the masquerade binding, by name. KubeVirt makes one at most.
	Bridges []Bridge
	// Links are the names of all links.
	Links []string
}

// prefix is how KubeVirt names bridges, of every binding.
const prefix = "k6t-"

// notGateway is where KubeVirt takes the address of a bridge that is of the bridge binding (its DHCP
// server's).
var notGateway = netip.MustParsePrefix("169.254.75.0/24")

// findAttempts bounds how often Find looks again because something changed while it looked.
const findAttempts = 5

// Find looks around in the network namespace that h is for.
func Find(h *netlink.Handle) (f Found, err error) {
	for range findAttempts {
		if f, err = find(h); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return f, err
}

func find(h *netlink.Handle) (Found, error) {
	var f Found
	links, err := h.LinkList()
	if err != nil {
		return f, fmt.Errorf("list links: %w", err)
	}
	addrs, err := h.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return f, fmt.Errorf("list addresses: %w", err)
	}
	for _, l := range links {
		f.Links = append(f.Links, l.Attrs().Name)
	}
	for _, l := range links {
		b := Bridge{Name: l.Attrs().Name}
		if l.Type() != "bridge" || !strings.HasPrefix(b.Name, prefix) {
			continue
		}
		for _, a := range addrs {
			if a.LinkIndex == l.Attrs().Index {
				b.add(a)
			}
		}
		if b.IPv4.IsValid() || b.IPv6.IsValid() {
			b.PodInterface = podInterface(b.Name, f.Links)
			f.Bridges = append(f.Bridges, b)
		}
	}
	slices.SortFunc(f.Bridges, func(a, b Bridge) int { return strings.Compare(a.Name, b.Name) })
	slices.Sort(f.Links)
	return f, nil
}

// add takes the guest's address from that of its gateway, the first of each family.
func (b *Bridge) add(a netlink.Addr) {
	ip, _ := netip.AddrFromSlice(a.IP)
	ip = ip.Unmap()
	bits, _ := a.Mask.Size()
	guest, ok := behind(netip.PrefixFrom(ip, bits))
	switch {
	case !ok:
	case guest.Is4() && !b.IPv4.IsValid():
		b.IPv4 = guest
	case guest.Is6() && !b.IPv6.IsValid():
		b.IPv6 = guest
	}
}

// behind gives the second host of a network, if p is its first, as a gateway's address is.
func behind(p netip.Prefix) (guest netip.Addr, ok bool) {
	a := p.Addr()
	guest = a.Next()
	ok = p.IsValid() && a == p.Masked().Addr().Next() && p.Contains(guest) && p.Bits() < a.BitLen()-1 &&
		!notGateway.Contains(a) && !(a.Is6() && a.IsLinkLocalUnicast())
	return guest, ok
}

// podInterface undoes KubeVirt's naming of bridges. A hashed name has lost its "pod"; which of the two
// it was is told by the links that there are.
func podInterface(bridge string, links []string) string {
	name := strings.TrimPrefix(bridge, prefix)
	if hashed := "pod" + name; !slices.Contains(links, name) && slices.Contains(links, hashed) {
		return hashed
	}
	return name
}

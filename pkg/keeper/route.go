package keeper

import (
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/meshvirt/meshvirt/pkg/rules"
)

// The policy route of mode tproxy, by which the kernel delivers a marked packet in the pod whatever
// its destination: rule "fwmark 0x20000/0x20000 lookup 15101", route "local default dev lo".
const (
	// relayTable is a number that nobody else uses in a pod (Istio: 100 and 133), that of the port.
	relayTable = 15101
	// relayRulePriority is anywhere between the kernel's tables local (0) and main (32766): the pod's
	// own addresses come first, then our mark. Rules made without a priority, such as Istio's, get
	// the lowest free one from 32765 down.
	relayRulePriority = 15101
)

// routeMarked makes the policy route in the namespace of the caller's thread, for IPv4 and, if it is asked for, IPv6.
// What is there stays.
func routeMarked(ipv6 bool) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("look at the loopback device: %w", err)
	}
	for _, f := range []struct {
		name     string
		family   int
		anywhere net.IPNet
	}{
		{"ip", unix.AF_INET, net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}},
		{"ip6", unix.AF_INET6, net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}},
	} {
		if f.family == unix.AF_INET6 && !ipv6 {
			continue
		}
		// The route first: a rule that leads nowhere would let the packet go on to table main.
		route := netlink.Route{LinkIndex: lo.Attrs().Index, Dst: &f.anywhere, Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST, Table: relayTable}
		if err := netlink.RouteReplace(&route); err != nil {
			return fmt.Errorf("route %s to the pod in table %d: %w", f.name, relayTable, err)
		}
		rule, mask := netlink.NewRule(), uint32(rules.RelayMark)
		rule.Family, rule.Mark, rule.Mask, rule.Table, rule.Priority = f.family, mask, &mask, relayTable, relayRulePriority
		if err := netlink.RuleAdd(rule); err != nil && !errors.Is(err, os.ErrExist) {
			return fmt.Errorf("look up %s packets of mark %#x in table %d: %w", f.name, rules.RelayMark, relayTable, err)
		}
	}
	return nil
}

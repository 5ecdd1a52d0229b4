package netlab

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/meshvirt/meshvirt/test/e2e/netlab/agent"
)

// A policyRoute delivers packets with a mark in the pod whatever their destination. A mask of 0 means that
// the whole mark is compared, a negative priority that the kernel chooses one.
type policyRoute struct {
	mark, mask      uint32
	table, priority int
}

// add makes the route in the namespace of the caller's thread.
func (p policyRoute) add(dual bool) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	everything := map[int]netip.Prefix{unix.AF_INET: netip.MustParsePrefix("0.0.0.0/0")}
	if dual {
		everything[unix.AF_INET6] = netip.MustParsePrefix("::/0")
	}
	for family, dst := range everything {
		rule := netlink.NewRule()
		rule.Family, rule.Priority, rule.Table, rule.Mark = family, p.priority, p.table, p.mark
		if p.mask != 0 {
			rule.Mask = &p.mask
		}
		if err := netlink.RuleAdd(rule); err != nil {
			return fmt.Errorf("rule: %w", err)
		}
		route := &netlink.Route{LinkIndex: lo.Attrs().Index, Dst: agent.IPNet(dst), Table: p.table, Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST}
		if err := netlink.RouteAdd(route); err != nil {
			return fmt.Errorf("route: %w", err)
		}
	}
	return nil
}

package netlab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/meshvirt/meshvirt/test/e2e/netlab/agent"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/netns"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/sidecar"
)

// Istio's ambient mode in its first form (2022, until in-pod redirection in 1.21): the node sends what
// members say, known by their addresses in an ipset, through a GENEVE tunnel to ztunnel's pod, and what is said
// to them through another. Names, numbers and marks are Istio's.
const (
	members         = "ztunnel-pods-ips"
	outboundTable   = 101
	returnTable     = 102
	inboundTable    = 100
	markOutbound    = 0x100
	markSkip        = 0x200
	markReturn      = 0x40
	markIntercepted = 0x400
	markReplies     = 0x4d3
	ztunnelMask     = 0xfff
)

// Ztunnel's pod has a network of its own on the node.
var (
	ztunnelIP  = netip.MustParseAddr("10.244.3.5")
	ztunnelGW  = netip.MustParseAddr("10.244.3.1")
	outboundZT = netip.MustParseAddr("192.168.127.2")
	inboundZT  = netip.MustParseAddr("192.168.126.2")
)

// nodeRules are those of the node. A packet of a member's is marked 0x100 and goes to ztunnel; what comes from
// there, and what the node itself says, is let go (0x200); and connections that ztunnel opened in another's
// name are remembered (0x210), so that their replies get back to it (0x40).
const nodeRules = `*mangle
:ztunnel-PREROUTING - [0:0]
:ztunnel-FORWARD - [0:0]
:ztunnel-INPUT - [0:0]
:ztunnel-OUTPUT - [0:0]
-A PREROUTING -j ztunnel-PREROUTING
-A FORWARD -j ztunnel-FORWARD
-A INPUT -j ztunnel-INPUT
-A OUTPUT -j ztunnel-OUTPUT
-A ztunnel-PREROUTING -i istioin -j MARK --set-mark 0x200/0x200
-A ztunnel-PREROUTING -i istioin -j RETURN
-A ztunnel-PREROUTING -i istioout -j MARK --set-mark 0x200/0x200
-A ztunnel-PREROUTING -i istioout -j RETURN
-A ztunnel-PREROUTING -p udp -m udp --dport 6081 -j RETURN
-A ztunnel-PREROUTING -m connmark --mark 0x220/0x220 -j MARK --set-mark 0x200/0x200
-A ztunnel-PREROUTING -m mark --mark 0x200/0x200 -j RETURN
-A ztunnel-PREROUTING ! -i ztunnel -m connmark --mark 0x210/0x210 -j MARK --set-mark 0x40/0x40
-A ztunnel-PREROUTING -m mark --mark 0x40/0x40 -j RETURN
-A ztunnel-PREROUTING -i ztunnel ! -s 10.244.3.5/32 -j MARK --set-mark 0x210/0x210
-A ztunnel-PREROUTING -m mark --mark 0x200/0x200 -j RETURN
-A ztunnel-PREROUTING -i ztunnel -j MARK --set-mark 0x220/0x220
-A ztunnel-PREROUTING -p udp -j MARK --set-mark 0x220/0x220
-A ztunnel-PREROUTING -m mark --mark 0x200/0x200 -j RETURN
-A ztunnel-PREROUTING -p tcp -m set --match-set ztunnel-pods-ips src -j MARK --set-mark 0x100/0x100
-A ztunnel-FORWARD -m mark --mark 0x220/0x220 -j CONNMARK --save-mark --nfmask 0x220 --ctmask 0x220
-A ztunnel-FORWARD -m mark --mark 0x210/0x210 -j CONNMARK --save-mark --nfmask 0x210 --ctmask 0x210
-A ztunnel-INPUT -m mark --mark 0x220/0x220 -j CONNMARK --save-mark --nfmask 0x220 --ctmask 0x220
-A ztunnel-INPUT -m mark --mark 0x210/0x210 -j CONNMARK --save-mark --nfmask 0x210 --ctmask 0x210
-A ztunnel-OUTPUT -s 10.244.1.1/32 -j MARK --set-mark 0x220
COMMIT
*nat
:ztunnel-PREROUTING - [0:0]
:ztunnel-POSTROUTING - [0:0]
-A PREROUTING -j ztunnel-PREROUTING
-A POSTROUTING -j ztunnel-POSTROUTING
-A ztunnel-PREROUTING -m mark --mark 0x100/0x100 -j ACCEPT
-A ztunnel-POSTROUTING -m mark --mark 0x100/0x100 -j ACCEPT
COMMIT
`

// ztunnelRules are those of ztunnel's pod. By eth0 come replies to what it said in another's name.
const ztunnelRules = `*mangle
-A PREROUTING -i pistioin -p tcp -m tcp --dport 15008 -j TPROXY --on-port 15008 --on-ip 127.0.0.1 --tproxy-mark 0x400/0xfff
-A PREROUTING -i pistioout -p tcp -j TPROXY --on-port 15001 --on-ip 127.0.0.1 --tproxy-mark 0x400/0xfff
-A PREROUTING -i pistioin -p tcp -j TPROXY --on-port 15006 --on-ip 127.0.0.1 --tproxy-mark 0x400/0xfff
-A PREROUTING -i eth0 -p tcp ! -d 10.244.3.5/32 -j MARK --set-mark 0x4d3/0xfff
COMMIT
`

// FirstAmbient makes ztunnel's pod and the node's redirection in the first form of ambient mode. It needs a
// kernel that has GENEVE, ipset and TPROXY.
func (l *Lab) FirstAmbient(ctx context.Context) error {
	zt, err := l.namespace("ztunnel")
	if err != nil {
		return err
	}
	// As in every namespace of a node that forwards: what is no TCP goes back from here.
	if err := zt.Sysctl("ipv4/ip_forward", "1"); err != nil {
		return err
	}
	if err := veth(l.node, "ztunnel", zt, "eth0"); err != nil {
		return err
	}
	node := func() error {
		if err := configure("ztunnel", []string{ztunnelGW.String() + "/24"}, nil); err != nil {
			return err
		}
		return errors.Join(
			tunnel("istioin", 1000, ztunnelIP, "192.168.126.1/30"),
			tunnel("istioout", 1001, ztunnelIP, "192.168.127.1/30"),
			netlink.IpsetCreate(members, "hash:ip", netlink.IpsetCreateOptions{}),
			route(inboundTable, "10.244.3.5/32 dev ztunnel"),
			route(outboundTable, "10.244.3.5/32 dev ztunnel"), route(outboundTable, "0.0.0.0/0 dev istioout", outboundZT),
			route(returnTable, "10.244.3.5/32 dev ztunnel"), route(returnTable, "0.0.0.0/0 dev ztunnel", ztunnelIP),
			lookup(100, markSkip, markSkip, 0), lookup(101, markOutbound, markOutbound, outboundTable),
			lookup(102, markReturn, markReturn, returnTable), lookup(103, 0, 0, inboundTable),
		)
	}
	inside := func() error {
		if err := configure("eth0", []string{ztunnelIP.String() + "/24"}, []string{"0.0.0.0/0 " + ztunnelGW.String()}); err != nil {
			return err
		}
		return errors.Join(
			tunnel("pistioin", 1000, ztunnelGW, inboundZT.String()+"/30"),
			tunnel("pistioout", 1001, ztunnelGW, outboundZT.String()+"/30"),
			policyRoute{mark: markIntercepted, mask: ztunnelMask, table: 100, priority: 20000}.add(false),
			lookup(20003, markReplies, ztunnelMask, 100),
		)
	}
	if err := errors.Join(l.node.Do(node), zt.Do(inside)); err != nil {
		return err
	}
	for ns, rules := range map[*netns.Namespace]string{l.node: nodeRules, zt: ztunnelRules} {
		if _, err := runIn(ctx, ns, rules, "iptables-legacy-restore"); err != nil {
			return err
		}
	}
	return l.startMesh(ctx, zt, "ztunnel", syscall.Credential{}, sidecar.Config{Transparent: true}, sidecar.Outbound, sidecar.Inbound, sidecar.HBONE)
}

// FirstAmbientEnrol makes the pod a member, as istio-cni did when it started.
func (l *Lab) FirstAmbientEnrol() error {
	return l.node.Do(func() error {
		return errors.Join(
			netlink.IpsetAdd(members, &netlink.IPSetEntry{IP: PodIP4.AsSlice()}),
			route(inboundTable, PodIP4.String()+"/32 dev istioin", inboundZT, NodeIP4))
	})
}

// Tunnelled counts the packets that the node has sent to ztunnel, from members and to them.
func (l *Lab) Tunnelled() (from, to uint64, err error) {
	err = l.node.Do(func() error {
		for name, n := range map[string]*uint64{"istioout": &from, "istioin": &to} {
			link, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			*n = link.Attrs().Statistics.TxPackets
		}
		return nil
	})
	return from, to, err
}

func tunnel(name string, id uint32, remote netip.Addr, addr string) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	if err := netlink.LinkAdd(&netlink.Geneve{LinkAttrs: attrs, ID: id, Remote: remote.AsSlice()}); err != nil {
		return fmt.Errorf("tunnel %s: %w", name, err)
	}
	// It would send packets of its own, and Tunnelled would count them.
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/disable_ipv6", []byte("1"), 0); err != nil {
		return err
	}
	return configure(name, []string{addr}, nil)
}

// route adds a route, written "destination dev link", to a table; by a gateway and with a source, if they are given.
func route(table int, to string, by ...netip.Addr) error {
	var dst, name string
	if _, err := fmt.Sscanf(to, "%s dev %s", &dst, &name); err != nil {
		return err
	}
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("link %s: %w", name, err)
	}
	r := &netlink.Route{Table: table, LinkIndex: link.Attrs().Index, Dst: agent.IPNet(netip.MustParsePrefix(dst)), Scope: netlink.SCOPE_LINK}
	if len(by) > 0 {
		r.Gw, r.Scope, r.Flags = by[0].AsSlice(), netlink.SCOPE_UNIVERSE, int(netlink.FLAG_ONLINK)
	}
	if len(by) > 1 {
		r.Src = by[1].AsSlice()
	}
	if err := netlink.RouteAdd(r); err != nil {
		return fmt.Errorf("route %s in table %d: %w", to, table, err)
	}
	return nil
}

// lookup adds a rule: marked packets look in a table, or, with table 0, in the main one alone.
func lookup(priority int, mark, mask uint32, table int) error {
	r := netlink.NewRule()
	r.Family, r.Priority, r.Table = unix.AF_INET, priority, table
	if mark != 0 {
		r.Mark, r.Mask = mark, &mask
	}
	if table == 0 {
		r.Goto = mainRule
	}
	if err := netlink.RuleAdd(r); err != nil {
		return fmt.Errorf("rule %d: %w", priority, err)
	}
	return nil
}

// mainRule is the priority of the kernel's own rule for the main table.
const mainRule = 32766

// FirstAmbientRecording is KubeVirt's part of a VM in such a mesh: it knew nothing of it.
const FirstAmbientRecording = "v1.0.1-noistio-noports-ipv4"

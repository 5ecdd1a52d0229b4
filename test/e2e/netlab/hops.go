package netlab

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/meshvirt/meshvirt/pkg/rules"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/sidecar"
)

// entry is a connection that the pod's kernel tracks: as it came, and the addresses of its replies
// before they are translated back. Where the two differ, an address was translated.
type entry struct {
	proto     uint8
	src, dst  netip.AddrPort // as it came
	real      netip.AddrPort // where it went: the source of replies
	presented netip.AddrPort // what the other end saw: the destination of replies
	relayed   bool           // given to our relay by TPROXY, which translates nothing
	started   uint64         // in nanoseconds: an earlier one may have had the same addresses and ports
}

// timeTracked makes the pod's kernel tell when a connection began, of those that begin from now on.
func (l *Lab) timeTracked() error {
	if _, err := l.tracked(false); err != nil { // it loads the module that has the setting
		return err
	}
	return l.pod.Sysctl("netfilter/nf_conntrack_timestamp", "1")
}

// relayPort is what relayed connections are given to in mode tproxy.
const relayPort = 15101

// tracked lists the entries that were not there at the last call, the oldest first.
func (l *Lab) tracked(ipv6 bool) ([]entry, error) {
	family := netlink.InetFamily(unix.AF_INET)
	if ipv6 {
		family = unix.AF_INET6
	}
	var fresh []entry
	err := l.pod.Do(func() error {
		flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, family)
		if err != nil {
			return fmt.Errorf("list tracked connections: %w", err)
		}
		for _, f := range flows {
			e := entry{
				f.Forward.Protocol,
				addrPort(f.Forward.SrcIP, f.Forward.SrcPort), addrPort(f.Forward.DstIP, f.Forward.DstPort),
				addrPort(f.Reverse.SrcIP, f.Reverse.SrcPort), addrPort(f.Reverse.DstIP, f.Reverse.DstPort),
				f.Mark&rules.RelayMark != 0,
				f.TimeStart,
			}
			if !l.known[e] {
				fresh = append(fresh, e)
			}
			l.known[e] = true
		}
		return nil
	})
	slices.SortFunc(fresh, func(a, b entry) int { return cmp.Compare(a.started, b.started) })
	return fresh, err
}

func addrPort(ip net.IP, port uint16) netip.AddrPort {
	a, _ := netip.AddrFromSlice(ip)
	return netip.AddrPortFrom(a.Unmap(), port)
}

// maxHops bounds a path in case a proxy calls itself.
const maxHops = 8

// hops follows a flow from the client's address through the connections it led to in the pod.
func (l *Lab) hops(r *Result, client netip.AddrPort, entries []entry) []string {
	hops := []string{string(r.Flow.From)}
	if client.Addr().IsValid() {
		hops[0] += " " + client.Addr().String()
	}
	switch {
	case r.Flow.From == Guest && l.speaker != "":
		hops = append(hops, l.speaker)
		client = netip.AddrPort{} // the process dials from a port of its own
	case r.Flow.From == Guest:
		hops = append(hops, l.BridgeName())
	case r.Flow.From != Pod:
		hops = append(hops, l.PodLink)
	}
	to := r.Flow.To
	if r.Flow.Tunnel {
		to = r.Flow.tunnel()
	}
	dialled := func(e entry) bool {
		return slices.ContainsFunc(r.Sidecar, func(s sidecar.Event) bool { return s.Local == e.src })
	}
	is := func(e entry) bool { return e.dst == to && (e.src == client || !client.IsValid() && !dialled(e)) }
	for range maxHops {
		i := indexLast(entries, is)
		if i < 0 {
			break
		}
		e := entries[i]
		entries = append(entries[:i:i], entries[i+1:]...)
		if e.relayed {
			e.real = at(PodIP4, relayPort)
		}
		if i := slices.IndexFunc(r.Sidecar, func(s sidecar.Event) bool { return s.Peer == e.src && s.Original == e.dst }); i >= 0 && e.real == e.dst {
			e.real = at(e.dst.Addr(), r.Sidecar[i].Port) // likewise, by the mesh's own TPROXY
		}
		name := l.ports[e.real.Port()]
		switch {
		case l.isGuest(e.real.Addr()):
			if r.Flow.From != Guest || len(hops) > 2 {
				hops = append(hops, l.BridgeName())
			}
			return append(hops, arrival("guest", e, r.GuestSaw))
		case !l.inPod(e.real.Addr()):
			hops = append(hops, l.PodLink)
			return append(hops, arrival("peer", e, r.PeerSaw))
		case name == "":
			return append(hops, fmt.Sprintf("pod %s", e.real))
		}
		hop := fmt.Sprintf("%s :%d", name, e.real.Port())
		if e.real != e.dst {
			hop += fmt.Sprintf(" (orig %s)", e.dst)
		}
		hops = append(hops, hop)
		if i := slices.IndexFunc(r.Sidecar, func(s sidecar.Event) bool { return s.Peer == e.src && s.Local.IsValid() }); i >= 0 {
			is = func(next entry) bool { return next.src == r.Sidecar[i].Local }
			continue
		}
		// Another process tells nothing: it goes on to the same destination, or to the guest in its place.
		// What the sidecar dialled is not its.
		is = func(next entry) bool {
			return !dialled(next) && next.proto == e.proto && next.dst.Port() == e.dst.Port() &&
				(next.dst == e.dst || l.isGuest(next.dst.Addr()))
		}
	}
	switch {
	case r.PeerSaw.IsValid():
		hops = append(hops, fmt.Sprintf("peer (saw %s)", r.PeerSaw.Addr()))
	case r.GuestSaw.IsValid():
		hops = append(hops, fmt.Sprintf("guest (saw %s)", r.GuestSaw.Addr()))
	}
	return hops
}

// arrival is the last hop. Without a report of the server, the kernel's of what was sent must do.
func arrival(host string, e entry, saw netip.AddrPort) string {
	if !saw.IsValid() {
		return fmt.Sprintf("%s %s (sent from %s)", host, e.real.Addr(), e.presented.Addr())
	}
	return fmt.Sprintf("%s (saw %s)", host, saw.Addr())
}

func indexLast(entries []entry, is func(entry) bool) int {
	for i := len(entries) - 1; i >= 0; i-- {
		if is(entries[i]) {
			return i
		}
	}
	return -1
}

// inPod reports whether a is an address of the pod itself, not of the guest.
func (l *Lab) inPod(a netip.Addr) bool {
	return a.IsLoopback() || a == PodIP4 || a == PodIP6 || isOne(a, l.gateways())
}

func (l *Lab) isGuest(a netip.Addr) bool { return isOne(a, l.guests()) }

func isOne(a netip.Addr, of []netip.Prefix) bool {
	return slices.ContainsFunc(of, func(p netip.Prefix) bool { return p.Addr() == a })
}

package bridge

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/meshvirt/meshvirt/pkg/plan"
)

// What says which part of a plan the pod contradicts. It is the value of the metrics' label.
type What string

// The contradictions.
const (
	// Bridges: several could be the guest's, and the plan does not say which.
	Bridges What = "bridges"
	// Interface: the plan's has not come, but another has.
	Interface What = "interface"
	// Guest: the guest has another address.
	Guest What = "guest"
	// Mesh: the guest's interface is adopted, but what the mesh itself does goes by another name.
	Mesh What = "mesh"
)

// Whats lists all of them.
var Whats = []What{Bridges, Interface, Guest, Mesh}

// A Contradiction between a plan and the pod.
type Contradiction struct {
	What What
	// Text says what was found, what was planned and what to do.
	Text string
}

func (c Contradiction) String() string { return c.Text }

// Settled is a plan after a look at the pod.
type Settled struct {
	// Plan has what was found in the place of what was assumed.
	Plan plan.Plan
	// Contradictions are what keeps the plan from being right.
	Contradictions []Contradiction
}

// Keys that make a plan certain or watched, for people.
const (
	keyInterfaces = "meshvirt.io/interfaces"
	keyGuest      = "meshvirt.io/guest-addresses"
	keyWatch      = "meshvirt.io/watch"
)

// A Settler compares a plan with one look after the other.
type Settler struct {
	told []string // the interfaces that the mesh was told of at admission
	last Settled
}

// NewSettler is for plan p.
func NewSettler(p plan.Plan) *Settler {
	return &Settler{told: p.Interfaces, last: Settled{Plan: p}}
}

// Settle takes what f tells into the plan. Without a masquerade bridge, which KubeVirt makes only
// after the pod's containers have started, all stays as it was: one that has gone is thought to come back. Where
// it cannot be told which bridge is the guest's, the plan stays as it was. It never changes where the rules
// are written once (no WatchPort): every difference is then a contradiction.
func (x *Settler) Settle(f Found) Settled {
	if len(f.Bridges) == 0 {
		return x.last
	}
	s := Settled{Plan: x.last.Plan}
	if b, ok := s.choose(f); ok {
		s.adopt(b, x.told)
	}
	x.last = s
	return s
}

// choose gives the guest's bridge, unless it is not to be told.
func (s *Settled) choose(f Found) (Bridge, bool) {
	p := s.Plan
	planned := strings.Join(p.Interfaces, ",")
	var named []Bridge
	for _, b := range f.Bridges {
		if slices.Contains(p.Interfaces, b.Name) {
			named = append(named, b)
		}
	}
	switch {
	case len(named) == 1 && (len(f.Bridges) == 1 || !p.Assumed.Interfaces):
		return named[0], true
	case len(named) > 1 && !p.Assumed.Interfaces && !p.Assumed.Guest: // the user knows it all; the first one that fits
		i := slices.IndexFunc(named, func(b Bridge) bool { return !differ(b.IPv4, p.Guest.IPv4) && !differ(b.IPv6, p.Guest.IPv6) })
		return named[max(i, 0)], true
	case len(named) > 1 || len(f.Bridges) > 1 && p.Assumed.Interfaces:
		s.contradict(Bridges, "found %d bridges that may be the guest's: %s; planned one: set annotation %s to its name", len(f.Bridges), list(f.Bridges), keyInterfaces)
	case p.Assumed.Interfaces && p.WatchPort != 0:
		return f.Bridges[0], true
	case p.Assumed.Interfaces:
		s.contradict(Interface, "found the guest behind %s, assumed %s when the rules were written once: set annotation %s: \"true\", or %s: %s",
			list(f.Bridges), planned, keyWatch, keyInterfaces, f.Bridges[0].Name)
	case slices.ContainsFunc(p.Interfaces, func(n string) bool { return !strings.HasPrefix(n, prefix) && slices.Contains(f.Links, n) }):
		// An interface that is not KubeVirt's is there as the user said.
	default:
		s.contradict(Interface, "found the guest behind %s, planned %s, as the VMI or annotation %s says: set %s: %s",
			list(f.Bridges), planned, keyInterfaces, keyInterfaces, f.Bridges[0].Name)
	}
	return Bridge{}, false
}

// adopt takes what is known of b into the plan. The mesh was told of other interfaces, perhaps.
func (s *Settled) adopt(b Bridge, told []string) {
	p := &s.Plan
	if by := byName(*p); by != "" && !slices.Contains(told, b.Name) {
		s.contradict(Mesh, "found the guest behind %s, and the mesh was told of %s when the pod was admitted, which matters %s: set annotation %s: %s",
			b.Name, strings.Join(told, ","), by, keyInterfaces, b.Name)
	}
	if !slices.Contains(p.Interfaces, b.Name) {
		p.Interfaces = []string{b.Name}
	}
	p.PodInterface = b.PodInterface
	s.address(&p.Guest.IPv4, b.IPv4, b.Name)
	s.address(&p.Guest.IPv6, b.IPv6, b.Name)
}

// byName says why the mesh's own redirection depends on the interface's name, or "". Elsewhere our
// rules decide before the mesh's.
func byName(p plan.Plan) string {
	switch {
	case p.Mode == plan.Native:
		return "in mode native"
	case p.Mesh.TProxyMark != 0:
		return "where it intercepts by TPROXY"
	}
	return ""
}

// address settles the guest's address of one family. One that the bridge has no gateway for may still
// come; one that the plan denies the guest stays denied.
func (s *Settled) address(planned *netip.Addr, found netip.Addr, bridge string) {
	p := &s.Plan
	switch {
	case p.Assumed.Guest && p.WatchPort != 0:
		if found.IsValid() {
			*planned = found
		}
	case !differ(*planned, found):
	case p.Assumed.Guest:
		s.contradict(Guest, "found the guest at %s behind %s, assumed %s when the rules were written once: set annotation %s: \"true\", or %s: %s",
			found, bridge, *planned, keyWatch, keyGuest, found)
	default:
		s.contradict(Guest, "found the guest at %s behind %s, planned %s, as the VMI or annotation %s says: set %s: %s",
			found, bridge, *planned, keyGuest, keyGuest, found)
	}
}

func differ(a, b netip.Addr) bool { return a.IsValid() && b.IsValid() && a != b }

func (s *Settled) contradict(w What, format string, args ...any) {
	s.Contradictions = append(s.Contradictions, Contradiction{w, fmt.Sprintf(format, args...) + ", and start the VM again"})
}

// list tells bridges with the guests behind them.
func list(bridges []Bridge) string {
	var out []string
	for _, b := range bridges {
		var guest []string
		for _, a := range []netip.Addr{b.IPv4, b.IPv6} {
			if a.IsValid() {
				guest = append(guest, a.String())
			}
		}
		out = append(out, fmt.Sprintf("%s (guest %s)", b.Name, strings.Join(guest, ", ")))
	}
	return strings.Join(out, ", ")
}

// Contradicted is the error that all contradictions are together, nil if there are none. A pod of which it
// is told is not ready.
func (s Settled) Contradicted() error {
	if len(s.Contradictions) == 0 {
		return nil
	}
	var texts []string
	for _, c := range s.Contradictions {
		texts = append(texts, c.Text)
	}
	return fmt.Errorf("the pod contradicts the plan: %s", strings.Join(texts, "; "))
}

package annotations

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/meshvirt/meshvirt/pkg/plan"
)

// errForm is returned where the wanted form says it all.
var errForm = errors.New("")

func parseMode(s *Settings, v string) error {
	m := plan.Mode(v)
	if !slices.Contains(plan.Modes, m) {
		return errForm
	}
	s.Mode = m
	return nil
}

func parseWatch(s *Settings, v string) error {
	s.Watch = WatchChoice(v)
	if !slices.Contains([]WatchChoice{WatchAuto, WatchTrue, WatchFalse}, s.Watch) {
		return errForm
	}
	return nil
}

func parseInject(_ *Settings, v string) error {
	if v != "true" && v != "false" {
		return errForm
	}
	return nil
}

func parseInterfaces(s *Settings, v string) error {
	for _, name := range split(v) {
		if !plan.ValidInterface(name) {
			return fmt.Errorf("%q is no interface name", name)
		}
		if slices.Contains(s.Interfaces, name) {
			return fmt.Errorf("%q is there twice", name)
		}
		s.Interfaces = append(s.Interfaces, name)
	}
	if len(s.Interfaces) == 0 {
		return errForm
	}
	return nil
}

func parseGuestAddresses(s *Settings, v string) error {
	for _, e := range split(v) {
		a, err := netip.ParseAddr(e)
		switch {
		case err != nil || a.Zone() != "" || a.Is4In6():
			return fmt.Errorf("%q is no address", e)
		case a.IsUnspecified() || a.IsLoopback() || a.IsMulticast():
			return fmt.Errorf("%s cannot be a guest's address", a)
		case a.Is4() && !s.GuestIPv4.IsValid():
			s.GuestIPv4 = a
		case a.Is6() && !s.GuestIPv6.IsValid():
			s.GuestIPv6 = a
		default:
			return fmt.Errorf("%s is the second of its family", a)
		}
	}
	if !s.GuestIPv4.IsValid() && !s.GuestIPv6.IsValid() {
		return errForm
	}
	return nil
}

func parseInclude(s *Settings, v string) error {
	if strings.TrimSpace(v) == "*" {
		s.IncludeOutbound = &CIDRs{All: true}
		return nil
	}
	list, err := parseCIDRs(v)
	if err != nil {
		return err
	}
	s.IncludeOutbound = &CIDRs{List: list}
	return nil
}

// parseCIDRs takes addresses as well, as Istio does, and masks host bits.
func parseCIDRs(v string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, e := range split(v) {
		p, err := netip.ParsePrefix(e)
		if err != nil {
			a, aerr := netip.ParseAddr(e)
			if aerr != nil || a.Zone() != "" {
				return nil, fmt.Errorf("%q is no CIDR", e)
			}
			p = netip.PrefixFrom(a, a.BitLen())
		}
		if p.Addr().Is4In6() {
			return nil, fmt.Errorf("%q is an IPv4 address in IPv6 form", e)
		}
		out = append(out, p.Masked())
	}
	return out, nil
}

func parsePorts(v string) ([]uint16, error) {
	var out []uint16
	for _, e := range split(v) {
		p, err := plan.ParsePort(e)
		if err != nil {
			return nil, fmt.Errorf("%q is no port", e)
		}
		out = append(out, p)
	}
	return out, nil
}

// split cuts a comma-separated list; an empty list has no elements, an empty element stays and is
// refused by the element's parser.
func split(v string) []string {
	if strings.TrimSpace(v) == "" {
		return nil
	}
	out := strings.Split(v, ",")
	for i := range out {
		out[i] = strings.TrimSpace(out[i])
	}
	return out
}

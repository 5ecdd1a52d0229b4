package plan

import (
	"fmt"
	"strconv"
	"strings"
)

// PortRange is a closed range of ports, 1 to 65535. Its text form is "80" or "8000-8100".
type PortRange struct {
	First, Last uint16
}

// Port is the range that holds p alone.
func Port(p uint16) PortRange { return PortRange{p, p} }

// ParsePort reads one port, 1 to 65535, in decimal.
func ParsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("want a port, 1 to 65535")
	}
	return uint16(n), nil
}

// ParsePortRange reads "80" or "8000-8100".
func ParsePortRange(s string) (PortRange, error) {
	first, last, isRange := strings.Cut(s, "-")
	a, err := ParsePort(first)
	if err != nil {
		return PortRange{}, err
	}
	if !isRange {
		return Port(a), nil
	}
	b, err := ParsePort(last)
	if err != nil {
		return PortRange{}, err
	}
	if b < a {
		return PortRange{}, fmt.Errorf("want a range that ends at or after %d", a)
	}
	return PortRange{a, b}, nil
}

// Contains reports whether p lies in r.
func (r PortRange) Contains(p uint16) bool { return r.First <= p && p <= r.Last }

// String gives "80" or "8000-8100".
func (r PortRange) String() string {
	if r.First == r.Last {
		return strconv.Itoa(int(r.First))
	}
	return fmt.Sprintf("%d-%d", r.First, r.Last)
}

// MarshalText is String.
func (r PortRange) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText is ParsePortRange.
func (r *PortRange) UnmarshalText(b []byte) (err error) {
	*r, err = ParsePortRange(string(b))
	return err
}

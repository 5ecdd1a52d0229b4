package annotations

import (
	"testing"
)

// Any value is either taken or refused with its key and what is wanted; none panics, and a list that
// is taken is made of valid elements.
func FuzzParse(f *testing.F) {
	for i, k := range Keys {
		f.Add(i, k.Example)
		f.Add(i, "")
		f.Add(i, " , ")
	}
	f.Add(0, "::ffff:1.2.3.4/96")
	f.Fuzz(func(t *testing.T, i int, value string) {
		k := Keys[uint(i)%uint(len(Keys))]
		s, _, errs := Parse(map[string]string{k.Name: value}, Path)
		if len(errs) > 1 {
			t.Errorf("%d errors for one key", len(errs))
		}
		if len(errs) == 1 {
			if errs[0].Field != Path.Key(k.Name).String() || errs[0].BadValue != value || errs[0].Detail == "" {
				t.Errorf("error %v lacks key, value or detail", errs[0])
			}
			return
		}
		for _, p := range s.ExcludeOutboundCIDRs {
			if !p.IsValid() || p != p.Masked() || p.Addr().Is4In6() {
				t.Errorf("%q gives CIDR %v", value, p)
			}
		}
		for _, p := range append(s.ExcludeOutboundPorts, s.ExcludeInboundPorts...) {
			if p == 0 {
				t.Errorf("%q gives port 0", value)
			}
		}
		if s.GuestIPv4.IsValid() && !s.GuestIPv4.Is4() || s.GuestIPv6.IsValid() && !s.GuestIPv6.Is6() {
			t.Errorf("%q gives addresses %v and %v", value, s.GuestIPv4, s.GuestIPv6)
		}
	})
}

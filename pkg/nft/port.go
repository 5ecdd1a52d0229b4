package nft

import (
	"strconv"

	"github.com/google/nftables"
)

// Ports says of every port whether it is meant. Arithmetic on 65,536 flags has no edges.
type Ports [1 << 16]bool

// PortsOf takes the ports of all lists; 0 is none.
func PortsOf(lists ...[]uint16) *Ports {
	var t Ports
	for _, l := range lists {
		for _, p := range l {
			t[p] = p != 0
		}
	}
	return &t
}

// Add takes the ports of a closed range in.
func (t *Ports) Add(first, last uint16) {
	for p := int(first); p <= int(last); p++ {
		t[p] = true
	}
}

// Without takes those of o out. It gives t.
func (t *Ports) Without(o *Ports) *Ports {
	for p, x := range o {
		t[p] = t[p] && !x
	}
	return t
}

// PortSet takes the ports that are meant, as the fewest ranges. The set is empty (nil) without any.
func PortSet(name, why string, ports *Ports) *Set {
	s := &Set{name: name, why: why, typ: nftables.TypeInetService}
	for p := 0; p < len(ports); p++ {
		if !ports[p] {
			continue
		}
		first := p
		for p+1 < len(ports) && ports[p+1] {
			p++
		}
		text := strconv.Itoa(first)
		if p > first {
			text += "-" + strconv.Itoa(p)
		}
		s.spans = append(s.spans, span{text: text, first: net16(uint16(first)), last: net16(uint16(p))})
	}
	if s.Len() == 0 {
		return nil
	}
	return s
}

package istio

import (
	"net/netip"
	"slices"
	"strconv"
)

// Settings are what arguments and environment tell istio-init, read apart from MeshVirt's own reader so
// that a mistake there shows.
type Settings struct {
	OutboundPort, InboundPort uint16
	UID, GID                  uint32
	Redirect, TProxy          bool // the interception mode; NONE if it is neither
	Native                    bool // nftables without iptables
	DualStack, DNS, DNSAll    bool
	SkipApply                 bool // nothing is written, only checked
	OutboundAll, InboundAll   bool
	IncludeCIDRs              []netip.Prefix
	ExcludeCIDRs              []netip.Prefix
	IncludeOutPorts           []uint16
	ExcludeOutPorts           []uint16
	IncludeInPorts            []uint16
	ExcludeInPorts            []uint16 // without effect unless InboundAll
	Virtual                   []string // interfaces to reroute
	Virtual4                  bool     // an old version, which reroutes them in IPv4 only
}

func (o options) settings() Settings {
	s := Settings{
		OutboundPort: o.port("envoy-port"), InboundPort: o.port("inbound-capture-port"), UID: uint32(o.number("proxy-uid")), GID: uint32(o.number("proxy-gid")),
		Redirect: !o.tproxy && o.otherMode == "", TProxy: o.tproxy, Native: o.native,
		DualStack: o.dual, DNS: o.dns, DNSAll: o.dnsAll, SkipApply: o.skipApply,
		OutboundAll: o.includeCIDRs.all(), InboundAll: o.inboundPorts.all(),
		ExcludeCIDRs: o.excludeCIDRs.prefixes(), IncludeOutPorts: o.includeOutPorts.ports(), ExcludeOutPorts: o.excludeOutPorts.ports(),
		ExcludeInPorts: o.excludeInPorts.ports(), Virtual: slices.Clone(o.virtual), Virtual4: o.virtual4,
	}
	if !s.OutboundAll {
		s.IncludeCIDRs = o.includeCIDRs.prefixes()
	}
	if !s.InboundAll {
		s.IncludeInPorts = o.inboundPorts.ports()
	}
	return s
}

func (o options) number(flag string) uint64 {
	n, _ := strconv.ParseUint(o.values[flag], 10, 32) // zero, which nothing listens on
	return n
}

func (o options) port(flag string) uint16 { return uint16(o.number(flag)) }

func (l list) prefixes() (all []netip.Prefix) {
	for _, s := range l {
		all = append(all, netip.MustParsePrefix(s)) // read has parsed it
	}
	return all
}

func (l list) ports() (all []uint16) {
	for _, s := range l {
		if n, err := strconv.ParseUint(s, 10, 16); err == nil {
			all = append(all, uint16(n))
		}
	}
	return all
}

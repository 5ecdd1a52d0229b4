package plan

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
)

// Encode gives p as JSON on one line, stamped with this release. Equal plans encode equally. It
// fails if the result is larger than MaxEncoded or if Validate does.
func (p Plan) Encode() (string, error) {
	p.Release = Release
	if err := p.Validate(); err != nil {
		return "", err
	}
	b, err := json.Marshal(p)
	if err != nil {
		return "", fmt.Errorf("encode plan: %w", err)
	}
	if len(b) > MaxEncoded {
		return "", fmt.Errorf("the plan takes %d bytes, want at most %d: give fewer or wider CIDRs", len(b), MaxEncoded)
	}
	return string(b), nil
}

// Decode reads what Encode wrote. It refuses unknown fields, trailing data and a plan of another
// release, and its error then names both releases: webhook and data plane must be upgraded together.
func Decode(s string) (Plan, error) {
	if s == "" {
		return Plan{}, fmt.Errorf("no plan: want one in the environment variable %s", Env)
	}
	// The release is read on its own first: an unknown field is best explained by it.
	var stamp struct {
		Release string `json:"release"`
	}
	if err := json.Unmarshal([]byte(s), &stamp); err != nil {
		return Plan{}, fmt.Errorf("decode plan: %w", err)
	}
	if stamp.Release != Release {
		return Plan{}, fmt.Errorf("the plan is of release %q, this data plane is of release %q: want the same release of webhook and data-plane image", stamp.Release, Release)
	}
	d := json.NewDecoder(bytes.NewReader([]byte(s)))
	d.DisallowUnknownFields()
	var p Plan
	if err := d.Decode(&p); err != nil {
		return Plan{}, fmt.Errorf("decode plan (of release %q, by data plane %q): %w", stamp.Release, Release, err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return Plan{}, errors.New("decode plan: data after the plan")
	}
	return p, p.Validate()
}

// planned are the modes that a plan may have.
var planned = []Mode{Native, Rules, NATProxy, TProxy, Ambient}

// Validate reports everything in p that the data plane could not obey.
func (p Plan) Validate() error {
	var errs []error
	want := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf("plan: "+format, args...))
		}
	}
	want(slices.Contains(planned, p.Mode), "mode is %q, want one of %q", p.Mode, planned)
	want(len(p.Interfaces) > 0, "interfaces is empty, want the guest's virtual interface")
	for _, name := range append(slices.Clone(p.Interfaces), p.PodInterface) {
		want(ValidInterface(name), "interface %q, want a name of 1 to 15 characters without '/', ':' and white space", name)
	}
	want(!slices.Contains(p.Interfaces, p.PodInterface), "podInterface %q is one of interfaces, want another", p.PodInterface)
	want(p.Guest.IPv4.IsValid() || p.Guest.IPv6.IsValid(), "guest has no address, want ipv4 or ipv6")
	want(!p.Guest.IPv4.IsValid() || p.Guest.IPv4.Is4(), "guest.ipv4 is %s, want an IPv4 address", p.Guest.IPv4)
	want(!p.Guest.IPv6.IsValid() || p.Guest.IPv6.Is6() && !p.Guest.IPv6.Is4In6() && p.Guest.IPv6.Zone() == "", "guest.ipv6 is %s, want an IPv6 address without zone", p.Guest.IPv6)
	want(p.Mesh.OutboundPort != 0, "mesh.outboundPort is 0, want a port")
	want(p.Mesh.InboundPort != 0, "mesh.inboundPort is 0, want a port")
	want(p.Mesh.TProxyMark&OwnMarks == 0, "mesh.tproxyMark is %#x, want none of the bits %#x, which are MeshVirt's", p.Mesh.TProxyMark, uint32(OwnMarks))
	want(p.Mesh.TProxyMark == 0 || p.Mode != Native && p.Mode != Ambient, "mesh.tproxyMark is %#x, want 0 in mode %q", p.Mesh.TProxyMark, p.Mode)
	want(p.Mode != Ambient || len(p.Mesh.OwnPorts) > 0, "mesh.ownPorts is empty, want the port of the mesh's tunnels in mode %q", Ambient)
	want(p.Mesh.DNS == nil || p.Mesh.DNS.Port != 0, "mesh.dns.port is 0, want a port")
	for _, c := range slices.Concat(p.Outbound.ExcludeCIDRs, p.Outbound.IncludeCIDRs) {
		want(c.IsValid() && c == c.Masked(), "outbound CIDR %s, want one without host bits", c)
	}
	want(!p.Outbound.All || len(p.Outbound.IncludeCIDRs) == 0, "outbound has both all and includeCIDRs")
	want(!p.Inbound.All || len(p.Inbound.IncludePorts) == 0, "inbound has both all and includePorts")
	want((p.Proxy != nil) == p.Mode.Relayed(), "proxy is set: %t, want it in modes %q and %q and in no other", p.Proxy != nil, NATProxy, TProxy)
	want(p.WatchPort != 0 || p.Mode != TProxy, "watchPort is 0, want a port in mode %q", TProxy)
	if x := p.Proxy; x != nil {
		want((x.UID == 0) == (p.Mode == TProxy), "proxy.uid is %d, want root in mode %q and in no other", x.UID, TProxy)
		want(x.UID != p.Mesh.UID && x.UID != p.Mesh.GID, "proxy.uid is %d, want another than the mesh's", x.UID)
		want(p.WatchPort == 0 || p.WatchPort != x.OutboundPort && p.WatchPort != x.InboundPort && p.WatchPort != x.StatusPort, "watchPort is one of proxy's, want another")
		want(x.OutboundPort != 0 && x.InboundPort != 0 && x.StatusPort != 0, "proxy has a port 0, want three ports")
		want(x.OutboundPort != x.InboundPort && x.InboundPort != x.StatusPort && x.StatusPort != x.OutboundPort, "proxy uses a port twice")
		for _, port := range append([]uint16{p.Mesh.OutboundPort, p.Mesh.InboundPort}, p.Mesh.OwnPorts...) {
			want(port != x.OutboundPort && port != x.InboundPort && port != x.StatusPort, "proxy uses port %d, want another than the mesh's", port)
		}
		want(x.DNSPort == 0 || p.Mesh.DNS != nil, "proxy.dnsPort is %d, want 0 for a mesh that does not capture DNS", x.DNSPort)
		want(int(x.DNSPort)+MaxNameservers-1 < 1<<16, "proxy.dnsPort is %d, want one that %d others follow", x.DNSPort, MaxNameservers-1)
		want(x.DrainSeconds >= 0, "proxy.drainSeconds is %d, want 0 or more", x.DrainSeconds)
	}
	return errors.Join(errs...)
}

// ValidInterface reports whether the kernel takes name for a network interface (dev_valid_name:
// at most 15 bytes, not "." or "..", no '/', ':' or white space). Quotes and other characters that
// would need escaping in nft text are refused as well.
func ValidInterface(name string) bool {
	if name == "" || len(name) > 15 || name == "." || name == ".." {
		return false
	}
	for _, r := range name {
		if r <= ' ' || r > '~' || r == '/' || r == ':' || r == '"' || r == '\\' || r == '*' || r == ',' {
			return false
		}
	}
	return true
}

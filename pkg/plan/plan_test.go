package plan

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func example() Plan {
	return Plan{
		Release:      Release,
		Mode:         NATProxy,
		Interfaces:   []string{"k6t-eth0"},
		PodInterface: "eth0",
		Guest: Guest{
			IPv4: netip.MustParseAddr("10.0.2.2"),
			IPv6: netip.MustParseAddr("fd10:0:2::2"),
			TCP:  []PortRange{Port(22), {8000, 8100}},
			UDP:  []PortRange{Port(53)},
		},
		Mesh: Mesh{OutboundPort: 15001, InboundPort: 15006, UID: 1337, GID: 1337, OwnPorts: []uint16{15008, 15020, 15021, 15090}, DNS: &DNS{Port: 15053}},
		Outbound: Outbound{
			All:          true,
			ExcludeCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.1/32")},
			ExcludePorts: []uint16{3306},
		},
		Inbound: Inbound{All: true, ExcludePorts: []uint16{22}},
		Proxy:   &Proxy{UID: 1500, OutboundPort: 15101, InboundPort: 15106, StatusPort: 15120, DNSPort: 15153, DrainSeconds: 30},
	}
}

func TestEncodeDecode(t *testing.T) {
	s, err := example().Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := Decode(s)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(example(), got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if strings.Contains(s, "\n") {
		t.Errorf("encoded plan has several lines: %s", s)
	}
}

func TestDecodeRefuses(t *testing.T) {
	good, err := example().Encode()
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ in, want string }{
		"nothing":         {"", Env},
		"not JSON":        {"{", "decode plan"},
		"another release": {strings.Replace(good, Release, "9.9.9", 1), `release "9.9.9", this data plane is of release "` + Release},
		"unknown field":   {strings.Replace(good, `"mode"`, `"colour":"red","mode"`, 1), `unknown field "colour"`},
		"trailing data":   {good + "{}", "decode plan"},
		"unknown mode":    {strings.Replace(good, "nat-proxy", "teleport", 1), `mode is "teleport"`},
		"a bad address":   {strings.Replace(good, "10.0.2.2", "10.0.2", 1), "decode plan"},
		"a bad port":      {strings.Replace(good, `"22"`, `"0"`, 1), "want a port, 1 to 65535"},
		"host bits":       {strings.Replace(good, "10.96.0.1/32", "10.96.0.1/31", 1), "without host bits"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Decode(c.in)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got error %v, want one with %q", err, c.want)
			}
		})
	}
}

func TestEncodeRefuses(t *testing.T) {
	big := example()
	for i := range 20000 {
		big.Outbound.ExcludeCIDRs = append(big.Outbound.ExcludeCIDRs, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24))
	}
	same := example()
	same.Proxy.UID = 1337
	noProxy := example()
	noProxy.Proxy = nil
	noGuest := example()
	noGuest.Guest = Guest{}
	noTunnel := example()
	noTunnel.Mode, noTunnel.Proxy, noTunnel.Mesh.OwnPorts = Ambient, nil, nil
	ourMark, nativeMark := example(), example()
	ourMark.Mesh.TProxyMark = 0x10000
	nativeMark.Mode, nativeMark.Proxy, nativeMark.Mesh.TProxyMark = Native, nil, 1337
	noCapture := example()
	noCapture.Mesh.DNS = nil
	lastPort := example()
	lastPort.Proxy.DNSPort = 65534
	noWatcher := example()
	noWatcher.Mode, noWatcher.Proxy.UID = TProxy, 0
	watchTwice := example()
	watchTwice.WatchPort = watchTwice.Proxy.StatusPort
	noInterface := example()
	noInterface.Interfaces = nil
	for name, c := range map[string]struct {
		plan Plan
		want string
	}{
		"too large":         {big, "give fewer or wider CIDRs"},
		"the mesh's uid":    {same, "want another than the mesh's"},
		"no proxy":          {noProxy, `proxy is set: false, want it in modes "nat-proxy" and "tproxy"`},
		"no guest address":  {noGuest, "guest has no address"},
		"no tunnels' port":  {noTunnel, "mesh.ownPorts is empty"},
		"a mark of ours":    {ourMark, "want none of the bits 0x30000"},
		"a mark for native": {nativeMark, `want 0 in mode "native"`},
		"no DNS to forward": {noCapture, "want 0 for a mesh that does not capture DNS"},
		"too high a port":   {lastPort, "proxy.dnsPort is 65534, want one that 2 others follow"},
		"no watcher":        {noWatcher, `watchPort is 0, want a port in mode "tproxy"`},
		"a port twice":      {watchTwice, "watchPort is one of proxy's"},
		"no interface":      {noInterface, "interfaces is empty"},
		"all at once (and)": {Plan{}, "mesh.inboundPort is 0"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := c.plan.Encode()
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got error %v, want one with %q", err, c.want)
			}
		})
	}
}

func TestPortRange(t *testing.T) {
	for in, want := range map[string]PortRange{"1": {1, 1}, "65535": {65535, 65535}, "80-90": {80, 90}, "7-7": {7, 7}} {
		if got, err := ParsePortRange(in); err != nil || got != want {
			t.Errorf("ParsePortRange(%q) = %v, %v; want %v", in, got, err, want)
		}
	}
	for _, in := range []string{"", "0", "65536", "-1", "80-", "-80", "90-80", "1-2-3", "http", " 80", "0x50"} {
		if got, err := ParsePortRange(in); err == nil {
			t.Errorf("ParsePortRange(%q) = %v, want an error", in, got)
		}
	}
}

func TestValidInterface(t *testing.T) {
	for _, name := range []string{"eth0", "k6t-eth0", "k6t-16477688c0e", "virbr0", "net1", "eth0.5"} {
		if !ValidInterface(name) {
			t.Errorf("%q is refused", name)
		}
	}
	for _, name := range []string{"", ".", "..", "a/b", "a b", "a:b", "sixteen-letters!", "k6t-*", `"`, "a,b", "é"} {
		if ValidInterface(name) {
			t.Errorf("%q is taken", name)
		}
	}
}

package netlab

import (
	"fmt"
	"net/netip"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/meshvirt/meshvirt/pkg/interpreter"
	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/rules"
	"github.com/meshvirt/meshvirt/pkg/walk"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/istio"
)

// TestWalk has package walk say beforehand what the kernel does, for flows in every mode: the first packet and the
// first reply of every connection in the pod, as each chain of ours finds it, the rules that match there, and whom the
// server sees. The kernel's word is its own trace (nft monitor trace), in which nothing may be missing or be too much.
func TestWalk(t *testing.T) {
	for name, c := range walks {
		for _, bridgeNF := range []bool{true, false} {
			if !bridgeNF && c.plan.Mode != plan.TProxy {
				continue // where they meet the IP hooks makes a difference for TPROXY alone
			}
			t.Run(fmt.Sprintf("%s, bridge-nf %t", name, bridgeNF), func(t *testing.T) {
				t.Parallel()
				l := walkLab(t, c, bridgeNF)
				trace := startTrace(t, l)
				for _, f := range slices.Concat(Flows, AmbientFlows) {
					if !walkable(f, c.plan.Mode) {
						continue
					}
					way, err := walk.Follow(walkPod(c.plan, bridgeNF), firstPacket(f), tunnelled(f))
					if err != nil {
						t.Errorf("%s: %v", f.Name, err)
						continue
					}
					var r Result
					var diff string
					want := walked(way)
					for range 2 { // a machine under load may send a segment again, which finds its connection known
						trace.forget()
						r = l.Check(t.Context(), f)
						trace.waitFor(want)
						if diff = cmp.Diff(want, trace.calls()); diff == "" {
							break
						}
					}
					if diff != "" {
						t.Errorf("%s: (-walk +kernel)\n%s", r, diff)
					}
					if got := end(r); got != endOf(way) && !strings.HasPrefix(f.Network, "dns") { // whose servers do not tell
						t.Errorf("%s: it came %s, the walk ends %s", r, got, endOf(way))
					}
				}
			})
		}
	}
}

// TestWalkAbsent shows that TestWalk fails if the kernel goes another way than the walk: there, without our rules
// of one reason.
func TestWalkAbsent(t *testing.T) {
	t.Parallel()
	c := walks["rules"]
	l := walkLab(t, c, true)
	takeRules(t, l, "TCP goes into the mesh")
	trace := startTrace(t, l)
	for _, name := range []string{"egress-tcp4", "egress-tcp6", "udp-out4"} {
		f := FlowNamed(name)
		way, err := walk.Follow(walkPod(c.plan, true), firstPacket(f), 0)
		do(t, err)
		trace.forget()
		l.Check(t.Context(), f)
		time.Sleep(time.Second) // what is told is not what is waited for
		want := name == "udp-out4"
		if same := slices.Equal(walked(way), trace.calls()); same != want {
			t.Errorf("%s: walk and kernel agree: %t, want %t", name, same, want)
		}
	}
}

// walkable leaves out what the walk cannot know, or is the same as another flow.
func walkable(f Flow, mode plan.Mode) bool {
	switch {
	case f.Network == "icmp", f.Half:
		return false
	case mode == plan.Ambient:
		return f.Name != "probe-sidecar" // there is none, and no server of the guest's either
	}
	return !f.Tunnel && f.Src.Addr() != ProbeIP4 && f.Src.Addr() != ProbeIP6
}

// tunnelled is the port that a flow asks for in its tunnel.
func tunnelled(f Flow) uint16 {
	if f.Tunnel {
		return f.To.Port()
	}
	return 0
}

// A walkCase is a plan, and the pod that it is for.
type walkCase struct {
	plan  plan.Plan
	istio []string // istio-init's arguments, nil for an ambient mesh
}

var walks = map[string]walkCase{
	"native":                       {handMade(plan.Native), []string{"-k", Bridge}},
	"rules":                        {handMade(plan.Rules), []string{"-c", Bridge}},
	"nat-proxy":                    {handMade(plan.NATProxy), []string{"-c", Bridge}},
	"tproxy":                       {handMade(plan.TProxy), []string{"-c", Bridge}},
	"rules, intercepted":           {intercepted(plan.Rules), []string{"-m", "TPROXY", "-c", Bridge}},
	"nat-proxy, intercepted":       {intercepted(plan.NATProxy), []string{"-m", "TPROXY", "-c", Bridge}},
	"tproxy, intercepted":          {intercepted(plan.TProxy), []string{"-m", "TPROXY", "-c", Bridge}},
	"ambient":                      {ambientPlan(), nil},
	"native, listed ports":         {listPorts(handMade(plan.Native)), []string{"-k", Bridge}},
	"rules, listed ports":          {listPorts(handMade(plan.Rules)), []string{"-c", Bridge}},
	"ambient, listed ports":        {listPorts(ambientPlan()), nil},
	"rules, IPv4":                  {changed(handMade(plan.Rules), func(p *plan.Plan) { p.Mesh.DualStack = false }), []string{"-c", Bridge}},
	"nat-proxy, IPv4":              {changed(handMade(plan.NATProxy), func(p *plan.Plan) { p.Mesh.DualStack = false }), []string{"-c", Bridge}},
	"native, included":             {changed(handMade(plan.Native), include), []string{"-i", PeerIP4.String() + "/32," + PeerIP6.String() + "/128", "-b", "80", "-k", Bridge}},
	"rules, included":              {changed(handMade(plan.Rules), include), []string{"-c", Bridge}},
	"rules, intercepted, included": {changed(intercepted(plan.Rules), include), []string{"-m", "TPROXY", "-b", "80", "-c", Bridge}},
	"rules, intercepted, excluded": {changed(intercepted(plan.Rules), func(p *plan.Plan) { p.Inbound.ExcludePorts = []uint16{SSHPort} }), []string{"-m", "TPROXY", "-c", Bridge}},
}

func changed(p plan.Plan, change func(*plan.Plan)) plan.Plan {
	change(&p)
	return p
}

// include takes some of the flows into the mesh, each way, and leaves some.
func include(p *plan.Plan) {
	p.Outbound = plan.Outbound{IncludeCIDRs: []netip.Prefix{netip.PrefixFrom(PeerIP4, 32), netip.PrefixFrom(PeerIP6, 128)}, ExcludePorts: []uint16{ExcludedPort}}
	p.Inbound = plan.Inbound{IncludePorts: []uint16{HTTPPort}}
}

func walkLab(t *testing.T, c walkCase, bridgeNF bool) *Lab {
	t.Helper()
	l := newLab(t, Options{DualStack: true, Image: dataPlane(t), Timeout: patience})
	value, ports := "0", "noports"
	if !c.plan.Guest.AllPorts() {
		ports = "ports-22-80"
	}
	kubevirt := "v1.9.0-istio-" + ports + "-dual"
	if bridgeNF {
		value = "1"
	}
	do(t, l.Namespace().Sysctl("bridge/bridge-nf-call-iptables", value), l.Namespace().Sysctl("bridge/bridge-nf-call-ip6tables", value))
	if c.istio != nil {
		args := append(slices.Clone(c.istio), "--redirect-dns")
		if c.plan.Mesh.DualStack {
			args = append(args, "--dual-stack")
		}
		startIstio(t, l, "1.29.6", NFT, args...)
	} else {
		kubevirt = "v1.9.0-noistio-" + ports + "-dual"
		startAmbient(t, l, NFT, istio.AmbientOptions{DualStack: true})
	}
	startMeshVirt(t, l, c.plan)
	do(t, l.KubeVirt(t.Context(), kubevirt), l.StartGuest(t.Context()))
	return l
}

// walkPod is the lab's pod for package walk.
func walkPod(p plan.Plan, bridgeNF bool) walk.Pod {
	p.Release = plan.Release
	on := func(a netip.Addr, bits int) netip.Prefix { return netip.PrefixFrom(a, bits) }
	return walk.Pod{
		Plan: p, Observed: rules.Pod{IPv6: p.Mesh.DualStack, Nameservers: []netip.Addr{DNSIP4, DNSIP6}}, BridgeNF: bridgeNF,
		IPs:      []netip.Prefix{on(PodIP4, 24), on(PodIP6, 64)},
		Gateways: []netip.Prefix{on(BridgeIP4, 24), on(BridgeIP6, 120)},
	}
}

// firstPacket is what the client of a flow sends.
func firstPacket(f Flow) interpreter.Packet {
	proto := uint8(unix.IPPROTO_TCP)
	if strings.HasSuffix(f.Network, "udp") {
		proto = unix.IPPROTO_UDP
	}
	pick := func(a, b netip.Addr) netip.AddrPort {
		if f.IPv6() {
			a = b
		}
		return at(a, walk.EphemeralPort)
	}
	src, in := map[Host]netip.AddrPort{
		Guest: pick(GuestIP4, GuestIP6), Peer: pick(PeerIP4, PeerIP6), Node: pick(NodeIP4, NodeIP6), Pod: pick(PodIP4, PodIP6),
	}[f.From], map[Host]string{Guest: Bridge, Peer: PodLink, Node: PodLink}[f.From]
	if f.Src.IsValid() {
		src = at(f.Src.Addr(), walk.EphemeralPort)
	}
	to := f.To
	if f.Tunnel {
		to = f.tunnel()
	}
	p := interpreter.New(in, proto, src, to)
	if f.From == Pod {
		p.Owner = &interpreter.Owner{UID: launcherUID, GID: launcherUID}
	}
	return p
}

// newCall is the text of a base chain of ours that the kernel called for a packet: the packet as it was then, and the rules that
// matched.

func newCall(chain, in, out, proto string, src, dst netip.AddrPort, matched []string) string {
	port := func(a netip.AddrPort) string {
		if a.Port() >= 32768 { // the first that a kernel chooses
			return a.Addr().String() + " *"
		}
		return a.Addr().String() + " " + strconv.Itoa(int(a.Port()))
	}
	return fmt.Sprintf("%s: %s>%s %s %s -> %s: %s", chain, in, out, proto, port(src), port(dst), strings.Join(matched, "; "))
}

// walked are the calls of a way, each once, in order of their text. The lowest priority is before the trace begins:
// there the kernel tells of it only by chance.
func walked(way walk.Way) []string {
	var all []string
	for _, leg := range way.Legs {
		for _, s := range slices.Concat(leg.First, leg.Reply) {
			if s.Chain == "" || s.Chain == "proxy_bridged" && len(s.Rules) == 0 {
				continue
			}
			var matched []string
			for _, m := range s.Rules {
				matched = append(matched, m.Chain+" "+m.Why)
			}
			in, out := s.Before.In, s.Before.Out
			if s.Hook == "postrouting" {
				in = ""
			}
			all = append(all, newCall(s.Chain, in, out, map[uint8]string{unix.IPPROTO_TCP: "tcp", unix.IPPROTO_UDP: "udp"}[s.Before.Proto], s.Before.Src, s.Before.Dst, matched))
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// A trace is what nft tells of packets in the pod.
type trace struct {
	sync.Mutex
	text strings.Builder
}

func (x *trace) Write(b []byte) (int, error) {
	x.Lock()
	defer x.Unlock()
	return x.text.Write(b)
}

func (x *trace) forget() {
	x.Lock()
	defer x.Unlock()
	x.text.Reset()
}

// startTrace has the kernel tell of the first packet and the first reply of every TCP connection, and of all of UDP.
func startTrace(t *testing.T, l *Lab) *trace {
	t.Helper()
	const which = "tcp flags & syn == syn meta nftrace set 1\n udp dport != 0 meta nftrace set 1\n"
	_, err := l.RunInPod(t.Context(), `table inet trace {
		chain pre { type filter hook prerouting priority -400
			`+which+`}
		chain out { type filter hook output priority -400
			`+which+`}
	}`, "nft", "-f", "-")
	do(t, err)
	x := &trace{}
	cmd := exec.Command("nft", "monitor", "trace")
	cmd.Stdout, cmd.Stderr = x, x
	do(t, l.Namespace().Start(cmd))
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	for range 100 { // until nft listens
		l.Check(t.Context(), FlowNamed("udp-out4"))
		if len(x.calls()) > 0 {
			time.Sleep(200 * time.Millisecond) // the rest of that
			return x
		}
	}
	t.Fatal("nft monitor tells nothing")
	return nil
}

// waitFor waits until all calls are told, for some time.
func (x *trace) waitFor(want []string) {
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		got := x.calls()
		if !slices.ContainsFunc(want, func(c string) bool { return !slices.Contains(got, c) }) {
			return
		}
	}
}

var (
	traceLine = regexp.MustCompile(`(?m)^trace id (\w+) inet meshvirt (\w+) (packet|rule|policy)(.*)$`)
	traceWord = regexp.MustCompile(`(iif|oif|saddr|daddr|sport|dport) "?([0-9a-z:.-]+)"?`)
	comment   = regexp.MustCompile(`comment "([^"]*)"`)
)

// calls are the calls told of so far, as walked gives them.
func (x *trace) calls() []string {
	x.Lock()
	text := x.text.String()
	x.Unlock()
	type open struct {
		chain, packet string
		matched       []string
	}
	var order []*open
	current := map[string]*open{}
	for _, m := range traceLine.FindAllStringSubmatch(text, -1) {
		id, chain, kind, rest := m[1], m[2], m[3], m[4]
		switch c := current[id]; {
		case kind == "packet":
			current[id] = &open{chain: chain, packet: rest}
			order = append(order, current[id])
		case kind == "rule" && c != nil:
			why := ""
			if m := comment.FindStringSubmatch(rest); m != nil {
				why = m[1]
			}
			c.matched = append(c.matched, chain+" "+why)
		}
	}
	var all []string
	for _, c := range order {
		if c.chain == "proxy_bridged" && len(c.matched) == 0 {
			continue
		}
		_, ip, _ := strings.Cut(c.packet, " ip") // behind the Ethernet addresses
		link := map[string]string{}
		for _, m := range traceWord.FindAllStringSubmatch(strings.SplitN(c.packet, " ether ", 2)[0]+" ip"+ip, -1) {
			link[m[1]] = m[2]
		}
		proto := "tcp"
		if strings.Contains(c.packet, " udp sport ") {
			proto = "udp"
		}
		if c.chain == "postrouting" {
			delete(link, "iif") // not every kernel tells there where a packet came in
		}
		ap := func(addr, port string) netip.AddrPort {
			a, _ := netip.ParseAddr(link[addr])
			p, _ := strconv.Atoi(link[port])
			return at(a, uint16(p))
		}
		all = append(all, newCall(c.chain, link["iif"], link["oif"], proto, ap("saddr", "sport"), ap("daddr", "dport"), c.matched))
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// end says where a flow came, endOf where a walk does.
func end(r Result) string {
	switch {
	case r.GuestSaw.IsValid():
		return "guest, which saw " + r.GuestSaw.Addr().String()
	case r.PeerSaw.IsValid():
		return "peer, which saw " + r.PeerSaw.Addr().String()
	}
	return "nowhere"
}

func endOf(w walk.Way) string {
	switch w.End.Kind {
	case walk.AtGuest, walk.AtPeer:
		return fmt.Sprintf("%s, which saw %s", w.End.Kind, w.End.Saw.Addr())
	}
	return "nowhere"
}

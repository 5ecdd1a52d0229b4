package netlab

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/meshvirt/meshvirt/test/e2e/netlab/agent"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/sidecar"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/vm"
)

// Result is what came of a flow.
type Result struct {
	Flow Flow
	// OK says that what was sent arrived and came back; Err says why not.
	OK  bool
	Err error
	// Via are the sidecar's listeners that the flow passed, in order, refusals included.
	Via []sidecar.Direction
	// Sidecar are the connections that Via is made of.
	Sidecar []sidecar.Event
	// GuestSaw, PeerSaw and PodSaw (a server in the pod beside the guest) are the client's address as
	// the server saw it, even if its answer was lost.
	GuestSaw, PeerSaw, PodSaw netip.AddrPort
	// Answer is the address that DNS gave, or for raw-tcp what came back: "syn-ack" or "rst".
	Answer string
	// Status is that of an HTTP answer.
	Status int
	// Hops is the path as connection tracking, the sidecar and the server have seen it.
	Hops []string
	Took time.Duration
}

// Passed reports whether the flow succeeded, and went by just these listeners of the sidecar.
func (r Result) Passed(via ...sidecar.Direction) bool {
	if !r.OK || len(r.Via) != len(via) {
		return false
	}
	for i := range via {
		if r.Via[i] != via[i] {
			return false
		}
	}
	return true
}

// Outcome is what tests compare, in words: "ok" or "fails", the sidecar's listeners passed, the
// address that DNS gave or what came back, and, if it is ok, whom the server saw.
// An example is "ok outbound saw 10.244.1.17".
func (r Result) Outcome() string {
	words := []string{"ok"}
	if !r.OK {
		words[0] = "fails"
	}
	for _, d := range r.Via {
		words = append(words, string(d))
	}
	if r.Answer != "" {
		words = append(words, r.Answer)
	}
	for _, saw := range []netip.AddrPort{r.PeerSaw, r.GuestSaw, r.PodSaw} {
		if r.OK && saw.IsValid() {
			words = append(words, "saw", saw.Addr().String())
		}
	}
	return strings.Join(words, " ")
}

// String is one line: the name, the outcome, the hops.
func (r Result) String() string {
	outcome := "ok"
	if !r.OK {
		outcome = "FAILS"
	}
	s := fmt.Sprintf("%-20s %-5s %s", r.Flow.Name, outcome, strings.Join(r.Hops, " -> "))
	if r.Answer != "" {
		s += " [" + r.Answer + "]"
	}
	if r.Err != nil {
		s += " (" + r.Err.Error() + ")"
	}
	return s
}

// payload is the size of what Echo sends: more than a packet.
const payload = 4096

// Check makes one attempt and tells what came of it. A failed attempt is in the result, not a panic
// or a hang: it is bounded by Options.Timeout. Checks of a lab run one after the other.
func (l *Lab) Check(ctx context.Context, f Flow) Result {
	l.checking.Lock()
	defer l.checking.Unlock()
	r := Result{Flow: f}
	start := time.Now()
	r.Err = l.check(ctx, f, &r)
	r.OK = r.Err == nil
	r.Took = time.Since(start)
	return r
}

// CheckAll checks flows in order, those of the pod's families.
func (l *Lab) CheckAll(ctx context.Context, flows []Flow) map[string]Result {
	results := map[string]Result{}
	for _, f := range flows {
		if l.carries(f) {
			results[f.Name] = l.Check(ctx, f)
		}
	}
	return results
}

func (l *Lab) check(ctx context.Context, f Flow, r *Result) error {
	from := map[Host]*agent.Client{Node: l.Node, Peer: l.Peer, Pod: l.Pod, Guest: l.Guest}[f.From]
	if from == nil {
		return fmt.Errorf("there is no %s", f.From)
	}
	token := rand.Text() // a virtual machine remembers those of other labs
	events, err := l.events(ctx)
	if err != nil {
		return err
	}
	local, failure := l.attempt(ctx, from, token, r)
	// What can be told of the path is told of a failed attempt too.
	after, err := l.events(ctx)
	if err != nil {
		return errors.Join(failure, err)
	}
	r.Sidecar = after[len(events):]
	for _, e := range r.Sidecar {
		r.Via = append(r.Via, e.Direction)
	}
	if f.Network == "dns-udp" {
		r.Via = slices.Compact(r.Via) // who waits for an answer asks again, and both questions may arrive
	}
	if err := l.whoSaw(ctx, token, r); err != nil {
		return errors.Join(failure, err)
	}
	if f.Network == "raw-udp" && failure == nil && !r.PeerSaw.IsValid() {
		failure = errors.New("the peer saw nothing")
	}
	fresh, err := l.tracked(f.IPv6())
	if err != nil {
		return errors.Join(failure, err)
	}
	r.Hops = l.hops(r, local, fresh)
	return failure
}

// attempt gives the client's address and why the attempt failed.
func (l *Lab) attempt(ctx context.Context, from *agent.Client, token string, r *Result) (netip.AddrPort, error) {
	f := r.Flow
	timeout := l.timeout(f)
	switch f.Network {
	case "tcp", "udp":
		d, err := from.Dial(ctx, agent.Dial{
			Network: f.Network, To: f.To, Kind: f.Kind, Token: token, Bytes: cmp.Or(f.Bytes, payload), Half: f.Half, Idle: f.Idle,
			Path: f.Path, From: f.Src.Addr(), Tunnel: f.tunnel(), Timeout: timeout + f.Idle,
		})
		if err == nil && !d.OK {
			err = errors.New(d.Err)
		}
		r.Status = d.Status
		if err == nil && f.Kind == agent.HTTP && d.Status != http.StatusOK {
			err = fmt.Errorf("HTTP status %d", d.Status)
		}
		return d.Local, err
	case "icmp":
		ok, err := from.Ping(ctx, agent.Ping{To: f.To.Addr(), Timeout: timeout})
		if err == nil && !ok {
			err = errors.New("no answer")
		}
		return netip.AddrPort{}, err
	case "dns-udp", "dns-tcp":
		d, err := from.Resolve(ctx, agent.Resolve{Network: strings.TrimPrefix(f.Network, "dns-"), Server: f.To, Name: "app.default.svc.cluster.local", Timeout: timeout})
		if err == nil && d.Err != "" {
			err = errors.New(d.Err)
		}
		if err == nil && len(d.Addrs) != 1 {
			err = fmt.Errorf("the answer has addresses %v, want one", d.Addrs)
		}
		if err == nil {
			r.Answer = d.Addrs[0].String()
		}
		return d.Local, err
	case "raw-tcp", "raw-udp":
		network := strings.TrimPrefix(f.Network, "raw-")
		if network == "udp" {
			timeout = 0 // the answer would go to the spoofed source
		}
		a, err := from.Raw(ctx, agent.Raw{Link: vm.Link, To: bridgeMAC, Network: network, Src: f.Src, Dst: f.To, Token: token, Timeout: timeout})
		r.Answer = a.Flags
		if err == nil && network == "tcp" && a.Flags != "syn-ack" {
			err = fmt.Errorf("no connection (answer %q)", a.Flags)
		}
		return f.Src, err
	}
	return netip.AddrPort{}, fmt.Errorf("no network %q", f.Network)
}

func (l *Lab) timeout(f Flow) time.Duration {
	if f.Timeout > 0 {
		return min(f.Timeout, l.Timeout)
	}
	return l.Timeout
}

func (l *Lab) events(ctx context.Context) ([]sidecar.Event, error) {
	if l.log == nil {
		return nil, nil
	}
	return l.log.Events(ctx)
}

// SidecarEvents are all connections that the sidecar took.
func (l *Lab) SidecarEvents(ctx context.Context) ([]sidecar.Event, error) {
	l.checking.Lock()
	defer l.checking.Unlock()
	return l.events(ctx)
}

// whoSaw asks the servers. Of a raw datagram the client cannot know whether it has arrived yet: then
// it asks for some time.
func (l *Lab) whoSaw(ctx context.Context, token string, r *Result) error {
	for end := time.Now().Add(l.timeout(r.Flow)); ; time.Sleep(probeInterval) {
		for _, server := range []struct {
			client *agent.Client
			saw    *netip.AddrPort
		}{{l.Guest, &r.GuestSaw}, {l.Peer, &r.PeerSaw}, {l.Pod, &r.PodSaw}} {
			if server.client == nil {
				continue
			}
			seen, err := server.client.Seen(ctx, token)
			if err != nil {
				return err
			}
			for _, s := range seen {
				*server.saw = s.Peer
			}
		}
		if r.Flow.Network != "raw-udp" || r.PeerSaw.IsValid() || time.Now().After(end) {
			return nil
		}
	}
}

// Probe makes an HTTP or TCP probe of a container once, as the kubelet on the node does.
func (l *Lab) Probe(ctx context.Context, c corev1.Container, p *corev1.Probe) error {
	d := agent.Dial{Network: "tcp", Kind: agent.HTTP, Timeout: l.Timeout}
	if p.TimeoutSeconds > 0 {
		d.Timeout = time.Duration(p.TimeoutSeconds) * time.Second
	}
	if p.HTTPGet == nil {
		return errors.New("want a probe with httpGet")
	}
	if p.HTTPGet.Host != "" || p.HTTPGet.Scheme != "" && p.HTTPGet.Scheme != corev1.URISchemeHTTP {
		return errors.New("a probe of another host or by https cannot be represented")
	}
	port := p.HTTPGet.Port.IntValue()
	for _, named := range c.Ports {
		if named.Name != "" && named.Name == p.HTTPGet.Port.StrVal {
			port = int(named.ContainerPort)
		}
	}
	d.To, d.Path = at(l.PodIPs()[0], uint16(port)), p.HTTPGet.Path
	d.Header = map[string]string{"User-Agent": "kube-probe/1.34"}
	for _, h := range p.HTTPGet.HTTPHeaders {
		d.Header[h.Name] = h.Value
	}
	got, err := l.Node.Dial(ctx, d)
	if err == nil && !got.OK {
		err = errors.New(got.Err)
	}
	if err == nil && (got.Status < 200 || got.Status >= 400) {
		err = fmt.Errorf("HTTP status %d: %s", got.Status, strings.TrimSpace(got.Body))
	}
	if err != nil {
		return fmt.Errorf("probe %s: http://%s%s: %w", c.Name, d.To, d.Path, err)
	}
	return nil
}

// probeInterval is how often WaitReady asks.
const probeInterval = 50 * time.Millisecond

// WaitReady repeats a probe until it succeeds or ctx ends; then its error is the probe's last.
func (l *Lab) WaitReady(ctx context.Context, c corev1.Container, p *corev1.Probe) error {
	for {
		err := l.Probe(ctx, c, p)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(probeInterval):
		}
	}
}

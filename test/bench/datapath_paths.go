package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/meshvirt/meshvirt/pkg/annotations"
	"github.com/meshvirt/meshvirt/pkg/mutate"
	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/templates"
	"github.com/meshvirt/meshvirt/test/e2e/netlab"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/container"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/sidecar"
	"github.com/meshvirt/meshvirt/tools"
)

// The recorded pod, and KubeVirt's recorded rules for it with and without a mesh. It lists no ports, so
// that all of them are the guest's.
const (
	recordedPod  = "test/corpus/pods/v1.9.0/masquerade-istio-noports/injected-1.31.0-rc.0-native.yaml"
	besideIstio  = "v1.9.0-istio-noports-dual"
	withoutIstio = "v1.9.0-noistio-noports-dual"
)

// relayUID is the user of the relays that stand in meshvirt-proxy's place: not the sidecar's, whose
// connections no redirect takes, and not that of meshvirt-proxy, with which they would share the kernel's
// limit on pipes (fs.pipe-user-pages-soft), of which io.Copy takes all.
const relayUID = 1600

// basePort is the first of the four that load serves; the numbers are load's.
const basePort = 7001

const (
	echoPort = basePort + iota
	keepPort
	closePort
	bulkPort
)

// A recipe says how a path is built.
type recipe struct {
	name string
	// mode the pod is admitted in. Off leaves it as Istio's injector made it.
	mode plan.Mode
	// alone leaves out Istio's rules and sidecar.
	alone bool
	// relay takes meshvirt-proxy's place.
	relay func(context.Context, *path) (*exec.Cmd, error)
	// excluded CIDRs, if there are any: for the guest, or with mode off for what else is in the pod.
	excluded int
	// inbound has a peer connect to the guest; ofPod has a process of the pod connect, not the guest.
	inbound, ofPod bool
}

// A path is a way for connections through a lab of its own.
type path struct {
	recipe
	lab            *netlab.Lab
	client, server netlab.Host
	to             netip.Addr
	plan           plan.Plan // zero with mode off
	relayPID       int       // of meshvirt-proxy or what is in its place; 0 if there is none
	load           *os.File
	closers        []func()
}

// newPath builds a path and checks that connections take it.
func newPath(ctx context.Context, r recipe, image container.Image) (_ *path, err error) {
	p := &path{recipe: r, client: netlab.Guest, server: netlab.Peer, to: netlab.PeerIP4}
	defer func() {
		if err != nil {
			p.close()
			err = fmt.Errorf("path %s: %w", r.name, err)
		}
	}()
	switch {
	case r.inbound:
		p.client, p.server, p.to = netlab.Peer, netlab.Guest, netlab.PodIP4
	case r.ofPod:
		p.client = netlab.Pod
	}
	pod, err := admitted(r)
	if err != nil {
		return nil, err
	}
	if r.mode != plan.Off {
		if p.plan, err = planOf(pod); err != nil {
			return nil, err
		}
	}
	if p.load, err = netlab.Build(ctx, "test/bench/load"); err != nil {
		return nil, err
	}
	if p.lab, err = netlab.New(ctx, netlab.Options{Pod: pod, Image: image, Quiet: true}); err != nil {
		return nil, err
	}
	rules := besideIstio
	if r.alone {
		rules = withoutIstio
	}
	running, err := p.lab.RunPod(ctx, pod, rules)
	if err != nil {
		return nil, err
	}
	if c := running[templates.ProxyName]; c != nil {
		p.relayPID = c.Pid()
	}
	if r.excluded > 0 && r.mode == plan.Rules {
		// So many do not fit into a container's environment.
		ruleset, err := excluding(p.plan, r.excluded)
		if err == nil {
			err = apply(ruleset, p.lab.Namespace())
		}
		if err != nil {
			return nil, err
		}
	}
	if err := p.tune(); err != nil {
		return nil, err
	}
	if err := p.serve(ctx); err != nil {
		return nil, err
	}
	return p, p.verify(ctx)
}

// admitted is the recorded pod as the webhook leaves it, less what the recipe does without.
func admitted(r recipe) (*corev1.Pod, error) {
	root, err := tools.Root()
	if err != nil {
		return nil, err
	}
	b, err := os.ReadFile(filepath.Join(root, recordedPod))
	if err != nil {
		return nil, err
	}
	pod := &corev1.Pod{}
	if err := yaml.Unmarshal(b, pod); err != nil {
		return nil, fmt.Errorf("%s: %w", recordedPod, err)
	}
	if r.mode != plan.Off {
		pod.Annotations[annotations.Mode] = string(r.mode)
		adapted, report, errs := mutate.Apply(pod, mutate.Facts{}, mutate.Config{Image: templates.Image{Name: templates.DefaultImage}})
		if len(errs) > 0 || report.Mode != r.mode {
			return nil, fmt.Errorf("admitted in mode %s (%s): %w", report.Mode, report.Reason, errs.ToAggregate())
		}
		pod = adapted
	} else if r.excluded > 0 {
		istioInit(pod).Args = append(istioInit(pod).Args, "-x", joined(scattered(r.excluded)))
	}
	pod.Spec.InitContainers = slices.DeleteFunc(pod.Spec.InitContainers, func(c corev1.Container) bool {
		return r.alone && strings.HasPrefix(c.Name, "istio-") || r.relay != nil && c.Name == templates.ProxyName
	})
	return pod, nil
}

func istioInit(pod *corev1.Pod) *corev1.Container {
	i := slices.IndexFunc(pod.Spec.InitContainers, func(c corev1.Container) bool { return c.Name == "istio-init" })
	return &pod.Spec.InitContainers[i] // the recorded pod has it
}

// planOf is the plan in the containers of an admitted pod.
func planOf(pod *corev1.Pod) (plan.Plan, error) {
	for _, c := range pod.Spec.InitContainers {
		for _, e := range c.Env {
			if e.Name == plan.Env {
				return plan.Decode(e.Value)
			}
		}
	}
	return plan.Plan{}, errors.New("the admitted pod has no plan")
}

// through are the pod's ports on which a connection of the path is taken, and those on which it is not.
func (p *path) through() map[uint16]bool {
	ports := map[uint16]bool{sidecar.Outbound: !p.alone && !p.inbound, sidecar.Inbound: !p.alone && p.inbound}
	if x := p.plan.Proxy; x != nil {
		ports[x.OutboundPort], ports[x.InboundPort] = !p.inbound, p.inbound
		if p.mode == plan.TProxy && !p.inbound {
			ports[x.OutboundPort], ports[echoPort] = false, true // its sockets have the address that was dialled
		}
	}
	return ports
}

// tune keeps thousands of connections a second from using up ports and tracked connections, alike on
// every path.
func (p *path) tune() error {
	var errs []error
	for _, h := range []netlab.Host{netlab.Peer, netlab.Pod, netlab.Guest} {
		errs = append(errs, p.lab.NamespaceOf(h).Sysctl("ipv4/tcp_tw_reuse", "1"))
	}
	for _, state := range []string{"time_wait", "close", "last_ack"} {
		errs = append(errs, p.lab.Namespace().Sysctl("netfilter/nf_conntrack_tcp_timeout_"+state, "1"))
	}
	return errors.Join(errs...)
}

// serve starts the server, and the relay in meshvirt-proxy's place.
func (p *path) serve(ctx context.Context) error {
	if err := p.start(p.server, p.loadCommand(ctx, "serve", "-port", fmt.Sprint(basePort)), "ready"); err != nil {
		return fmt.Errorf("server: %w", err)
	}
	if p.relay == nil {
		return nil
	}
	cmd, err := p.relay(ctx, p)
	if err != nil {
		return fmt.Errorf("relay: %w", err)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: relayUID, Gid: relayUID}}
	if err := p.start(netlab.Pod, cmd, ""); err != nil {
		return fmt.Errorf("relay: %w", err)
	}
	p.relayPID = cmd.Process.Pid
	return nil
}

// plainRelay is io.Copy.
func plainRelay(ctx context.Context, p *path) (*exec.Cmd, error) {
	return p.loadCommand(ctx, "relay", "-port", fmt.Sprint(p.plan.Proxy.OutboundPort)), nil
}

// haproxyConfig passes connections on to where they went before they were redirected, as "server
// 0.0.0.0" means. Connections are as many as descriptors allow.
const haproxyConfig = `global
	nbthread 2
	maxconn %d
defaults
	mode tcp
	timeout connect 10s
	timeout client 1h
	timeout server 1h
listen relay
	bind 0.0.0.0:%d
	server original 0.0.0.0
`

func haproxy(ctx context.Context, p *path) (*exec.Cmd, error) {
	limit, err := maxConnections()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "bench-haproxy-")
	if err != nil {
		return nil, err
	}
	p.closers = append(p.closers, func() { os.RemoveAll(dir) })
	file := filepath.Join(dir, "haproxy.cfg")
	if err := os.WriteFile(file, fmt.Appendf(nil, haproxyConfig, limit, p.plan.Proxy.OutboundPort), 0o644); err != nil {
		return nil, err
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return nil, err
	}
	return exec.CommandContext(ctx, "haproxy", "-db", "-f", file), nil
}

// ready bounds the wait for a path to carry what it should.
const ready = 20 * time.Second

// verify sees connections where they must be, taken once on each port of the path and on no other, and
// waits until they have gone.
func (p *path) verify(ctx context.Context) error {
	return await(ctx, func() error { return p.verifyOnce(ctx, 3) }) // a relay may not listen yet
}

func (p *path) verifyOnce(ctx context.Context, n int) error {
	done, err := p.hold(ctx, n)
	if err != nil {
		return err
	}
	err = p.wantTaken(n)
	done()
	if err != nil {
		return err
	}
	return await(ctx, func() error { return p.wantTaken(0) })
}

// wantTaken reports an error if it is not n connections that go along the path now.
func (p *path) wantTaken(n int) error {
	got, err := taken(p.lab.Namespace())
	if err != nil {
		return err
	}
	for port, takes := range p.through() {
		want := 0
		if takes {
			want = n
		}
		if got[port] != want {
			return fmt.Errorf("%d connections are taken on the pod's port %d, want %d", got[port], port, want)
		}
	}
	return nil
}

// await repeats f until it finds nothing wrong, as long as ready.
func await(ctx context.Context, f func() error) error {
	for end := time.Now().Add(ready); ; {
		err := f()
		if err == nil || ctx.Err() != nil || time.Now().After(end) {
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (p *path) close() {
	for _, f := range slices.Backward(p.closers) {
		f()
	}
	if p.lab != nil {
		p.lab.Close()
	}
}

package netlab

import (
	"context"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/container"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/sidecar"
)

// startup bounds the wait for a container to be ready.
const startup = 30 * time.Second

// RunPod does what kubelet, Istio's containers and KubeVirt do with an admitted pod, in their order, up to
// a guest that runs. KubeVirt's rules are those of a recording (see kubevirt.Rules). It gives
// MeshVirt's containers that run on, by name.
func (l *Lab) RunPod(ctx context.Context, pod *corev1.Pod, recording string) (map[string]*container.Process, error) {
	mesh := sidecar.Config{Quiet: l.Quiet}
	running := map[string]*container.Process{}
	for _, c := range pod.Spec.InitContainers {
		switch {
		case c.Name == "istio-init":
			rules, err := l.IstioInitContainer(ctx, NFT, c)
			if err != nil {
				return nil, fmt.Errorf("istio-init: %w", err)
			}
			mesh.IPv6, mesh.DNS, mesh.Transparent = rules.DualStack, rules.DNS, rules.TProxy
		case c.Name == "istio-proxy":
			if err := l.StartSidecar(ctx, mesh); err != nil {
				return nil, fmt.Errorf("istio-proxy: %w", err)
			}
		case !strings.HasPrefix(c.Name, "meshvirt-"):
			// KubeVirt's own have no part in the network.
		case c.RestartPolicy == nil:
			if err := l.RunInit(ctx, c); err != nil {
				return nil, err
			}
		default:
			process, err := l.startNative(ctx, c)
			if err != nil {
				return nil, err
			}
			running[c.Name] = process
		}
	}
	if err := l.KubeVirt(ctx, recording); err != nil {
		return nil, fmt.Errorf("KubeVirt's rules: %w", err)
	}
	return running, l.StartGuest(ctx)
}

// startNative starts a native sidecar of ours and waits, as a kubelet does, until it has started up.
func (l *Lab) startNative(ctx context.Context, c corev1.Container) (*container.Process, error) {
	process, err := l.Start(c)
	if err != nil {
		return nil, err
	}
	for _, e := range c.Env {
		if p, err := plan.Decode(e.Value); e.Name == plan.Env && err == nil && p.Proxy != nil {
			l.NamePort(p.Proxy.OutboundPort, c.Name)
			l.NamePort(p.Proxy.InboundPort, c.Name)
			if p.Proxy.DNSPort != 0 {
				l.NamePort(p.Proxy.DNSPort, c.Name)
				l.NamePort(p.Proxy.DNSPort+1, c.Name)
			}
		}
	}
	if c.StartupProbe == nil {
		return process, nil
	}
	ctx, cancel := context.WithTimeout(ctx, startup)
	defer cancel()
	if err := l.WaitReady(ctx, c, c.StartupProbe); err != nil {
		return nil, fmt.Errorf("%w\n%s", err, process.Output())
	}
	return process, nil
}

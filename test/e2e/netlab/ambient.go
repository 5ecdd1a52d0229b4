package netlab

import (
	"context"
	"fmt"
	"syscall"

	"github.com/meshvirt/meshvirt/test/e2e/netlab/istio"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/sidecar"
)

// AmbientEnrol does what istio-cni does when a pod joins an ambient mesh: rules and a policy route in the
// pod, and on the node the address from which the kubelet's probes come. It may come before KubeVirt's
// work (the pod starts in the mesh) or after it (it joins later).
func (l *Lab) AmbientEnrol(ctx context.Context, backend Backend, o istio.AmbientOptions) (istio.Rules, error) {
	r, err := istio.Ambient(o)
	if err != nil {
		return r, err
	}
	return r, l.AmbientRules(ctx, backend, r)
}

// AmbientRules is AmbientEnrol with the rules that it writes.
func (l *Lab) AmbientRules(ctx context.Context, backend Backend, r istio.Rules) error {
	if err := l.load(ctx, backend, r); err != nil {
		return err
	}
	route := policyRoute{mark: istio.AmbientMark, mask: istio.AmbientMask, table: istio.AmbientTable, priority: istio.AmbientRulePriority}
	if err := l.pod.Do(func() error { return route.add(r.DualStack) }); err != nil {
		return fmt.Errorf("policy route: %w", err)
	}
	return l.node.Do(func() error {
		return configure("lo", []string{ProbeIP4.String() + "/32", ProbeIP6.String() + "/128"}, nil)
	})
}

// StartZtunnel starts the stand-in of the node's proxy, with its sockets in the pod, and returns when
// it listens.
func (l *Lab) StartZtunnel(ctx context.Context, cfg sidecar.Config) error {
	return l.startMesh(ctx, l.pod, "ztunnel", syscall.Credential{}, cfg, sidecar.Outbound, sidecar.Inbound, sidecar.HBONE, sidecar.DNSPort)
}

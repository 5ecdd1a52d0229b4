package mesh

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/meshvirt/meshvirt/pkg/plan"
)

// Ports of Istio's containers.
const (
	// IstioOutboundPort and IstioInboundPort are where Envoy listens for redirected connections.
	IstioOutboundPort = 15001
	IstioInboundPort  = 15006
	// IstioTunnelPort is Envoy's listener for HBONE, mTLS tunnels of ambient meshes: peers dial it.
	IstioTunnelPort = 15008
	// IstioAgentPort is istio-agent's: merged metrics, and probes that the injector rewrote to it.
	IstioAgentPort = 15020
	// IstioHealthPort answers the kubelet's readiness and start-up probes of istio-proxy.
	IstioHealthPort = 15021
	// IstioDNSPort is istio-agent's DNS proxy, on loopback.
	IstioDNSPort = 15053
	// IstioMetricsPort is Envoy's own metrics for Prometheus.
	IstioMetricsPort = 15090
)

// IstioReservedPorts are the ports that Istio's containers listen on, outside or on loopback; a guest
// behind the same address cannot have them. Istio documents them as "ports used by the sidecar".
var IstioReservedPorts = []uint16{15000, IstioOutboundPort, 15004, IstioInboundPort, IstioTunnelPort, 15009, IstioAgentPort, IstioHealthPort, IstioDNSPort, IstioMetricsPort}

// Input is where Istio's settings of one pod stand.
type Input struct {
	// Args are the command and the arguments, one after the other, of istio-init, or of
	// istio-validation where istio-cni writes the rules.
	Args []string
	// Env is the environment of istio-init; where istio-cni writes the rules, that of istio-proxy, because
	// the plug-in looks there. Values from elsewhere (valueFrom) are left out.
	Env map[string]string
	// Annotations are the pod's.
	Annotations map[string]string
	// Image is that of the container whose arguments Args are. Its tag tells the release where the
	// arguments mean different things. Without a readable one the newest release is assumed.
	Image string
	// CNI says that istio-cni writes the rules: the pod has istio-validation instead of istio-init.
	CNI bool
}

// ReadIstio reads the redirection that Istio sets up in a pod. Its error names every flag, variable or
// annotation whose value it does not understand, and what is wanted.
func ReadIstio(in Input) (Capture, error) {
	_ = errors.Join
	_ = fmt.Errorf
	_ = netip.ParseAddr
	_ = slices.Sort[[]int]
	_ = strconv.Itoa
	_ = strings.Cut
	_ = plan.ParsePort
	return Capture{}, errors.New("not written yet")
}

package mesh

import "github.com/meshvirt/meshvirt/pkg/plan"

// AmbientName is what Recognise calls Istio without sidecars.
const AmbientName = "istio-ambient"

// AnnotationAmbientDNS is an annotation that, with the value "false", keeps ztunnel from taking the pod's DNS (Istio 1.25).
const AnnotationAmbientDNS = "ambient.istio.io/dns-capture"

// ReadAmbient gives what ztunnel takes in an enrolled pod. It listens in the pod's network namespace on
// the ports of a sidecar, on both families where the pod has them, and exempts nothing: annotations
// that exclude traffic from sidecars have no effect. DNS capture is the default since Istio 1.25, the
// first release that knows virtual interfaces in ambient mode.
func ReadAmbient(annotations map[string]string) (Capture, error) {
	c := Capture{
		OutboundPort: IstioOutboundPort,
		InboundPort:  IstioInboundPort,
		TunnelPort:   IstioTunnelPort,
		Interception: InterceptionRedirect,
		OutboundAll:  true,
		InboundAll:   true,
		OwnPorts:     []uint16{IstioTunnelPort},
		DualStack:    true,
	}
	settings, err := ReadIstio(Input{CNI: true, Annotations: map[string]string{
		AnnotationRerouteInterfaces:  annotations[AnnotationRerouteInterfaces],
		AnnotationKubevirtInterfaces: annotations[AnnotationKubevirtInterfaces],
	}})
	if err != nil {
		return Capture{}, err
	}
	c.RerouteInterfaces = settings.RerouteInterfaces
	if annotations[AnnotationAmbientDNS] != "false" {
		c.DNS = &plan.DNS{Port: IstioDNSPort, All: true}
	}
	return c, nil
}

// ambient is Istio without sidecars: ztunnel, on the node, takes the traffic in the pod's network namespace.
// istio-cni enrols a pod once it runs, so at admission only labels tell.
var ambient = Other{
	Name: AmbientName,
	finds: func(t Traces) bool {
		return !t.has("istio-proxy") &&
			(t.label("istio.io/dataplane-mode") == "ambient" || t.Annotations["ambient.istio.io/redirection"] == "enabled")
	},
	advice: func(t Traces) []string {
		inbound := "inbound TCP goes past the mesh to the guest, port 15008 of other members' tunnels too"
		if t.steppedBack() {
			inbound = "inbound TCP from the mesh does not get through to the VM (https://github.com/kubevirt/kubevirt/issues/18871)"
		}
		return []string{
			"Istio ambient: TCP that the guest opens goes into the mesh if " + AnnotationRerouteInterfaces + " names the VM's bridge (Istio 1.25, KubeVirt 1.7 or newer), its UDP does not",
			"Istio ambient: " + inbound,
			"Istio ambient: with " + annotationInject + `: "true" on the VMI, and ENABLE_ORIG_SRC=false for ztunnel in the whole cluster, inbound TCP goes through the mesh, without the client's address`,
			usePasst,
		}
	},
}

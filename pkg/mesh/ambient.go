package mesh

// ambient is Istio without sidecars: ztunnel, on the node, takes the traffic in the pod's network namespace.
// istio-cni enrols a pod once it runs, so at admission only labels tell.
var ambient = Other{
	Name: "istio-ambient",
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

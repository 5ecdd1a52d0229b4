package mesh

// ambient is Istio without sidecars: ztunnel, on the node, takes the traffic in the pod's network namespace.
// istio-cni enrols a pod once it runs, so at admission only labels tell.
var ambient = Other{
	Name: "istio-ambient",
	finds: func(t Traces) bool {
		return !t.has("istio-proxy") &&
			(t.label("istio.io/dataplane-mode") == "ambient" || t.Annotations["ambient.istio.io/redirection"] == "enabled")
	},
	Advice: []string{
		"Istio ambient: TCP that the guest opens goes into the mesh if " + AnnotationRerouteInterfaces + " names the VM's bridge (Istio 1.25, KubeVirt 1.7 or newer), its UDP does not",
		`Istio ambient: inbound TCP does not get through ztunnel to a VM; without sidecar.istio.io/inject: "true" on the VMI it goes past the mesh to the guest, port 15008 too, with it it is refused`,
		"Istio ambient: ztunnel with ENABLE_ORIG_SRC=false, for the whole cluster, lets inbound TCP through, at the price of the client's address; " + usePasst,
	},
}

package mesh

// kuma alone of the others knows virtual interfaces: with redirect.vnet.networks it takes the guest's
// TCP and DNS for the pod's outbound traffic.
var kuma = Other{
	Name:  "kuma",
	finds: func(t Traces) bool { return t.has("kuma-sidecar", "kuma-init", "kuma-validation") },
	redirects: func(t Traces) bool {
		return t.Annotations["kuma.io/transparent-proxying"] != "disabled"
	},
	advice: func(t Traces) []string {
		return append([]string{
			"Kuma takes TCP that the guest opens for inbound traffic (port 15006), where it is lost, unless it is told of the VM's interface",
			"redirect.vnet.networks with k6t-eth0:10.0.2.0/24, in a ConfigMap that traffic.kuma.io/transparent-proxy-configmap-name names, sends it to the outbound port",
			usePasst,
		}, t.inbound()...)
	},
}

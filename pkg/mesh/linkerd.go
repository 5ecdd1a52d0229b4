package mesh

// linkerd has no notion of virtual interfaces: its rules take all TCP that comes to the pod's network
// namespace for inbound, and the guest's comes there by the bridge.
var linkerd = Other{
	Name: "linkerd",
	finds: func(t Traces) bool {
		return t.has("linkerd-proxy", "linkerd-init", "linkerd-network-validator")
	},
	advice: func(t Traces) []string {
		return append([]string{
			"Linkerd takes TCP that the guest opens for inbound traffic (port 4143), where it is lost",
			"the annotation config.linkerd.io/skip-subnets with the VM's network (10.0.2.0/24) lets the guest's TCP out, outside the mesh",
			usePasst,
		}, t.inbound()...)
	},
}

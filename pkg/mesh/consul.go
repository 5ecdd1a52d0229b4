package mesh

// consul excludes ports, CIDRs and users of the pod's own traffic; nothing of that concerns a guest.
var consul = Other{
	Name:  "consul",
	finds: func(t Traces) bool { return t.has("consul-dataplane", "consul-connect-inject-init") },
	redirects: func(t Traces) bool {
		return t.Annotations["consul.hashicorp.com/transparent-proxy-status"] == "enabled"
	},
	advice: func(t Traces) []string {
		return append([]string{
			"Consul takes TCP that the guest opens for inbound traffic (port 20000), where it is lost, and no exclusion of Consul's changes that",
			usePasst,
		}, t.inbound()...)
	},
}

package decision

// Reason says why a pod was adapted in the way it was, or left alone. The set is closed: the same
// string is in the log, the metric's label, meshvirt.io/status and docs/reasons.md.
type Reason string

// Reasons for leaving a pod alone.
const (
	NotVirtLauncher    Reason = "NotVirtLauncher"
	HostNetwork        Reason = "HostNetwork"
	OptedOut           Reason = "OptedOut"
	NoMesh             Reason = "NoMesh"
	NoInterception     Reason = "NoInterception"
	InterceptionTPROXY Reason = "InterceptionTPROXY"
	NoVirtualInterface Reason = "NoVirtualInterface"
	MeshUnsupported    Reason = "MeshUnsupported"
	AmbientUnsupported Reason = "AmbientUnsupported"
	BindingUnsupported Reason = "BindingUnsupported"
	Invalid            Reason = "Invalid"
)

// Reasons for the mode of an adapted pod.
const (
	Requested         Reason = "Requested"
	ConfiguredDefault Reason = "ConfiguredDefault"
	MasqueradeSidecar Reason = "MasqueradeSidecar"
	MasqueradeAmbient Reason = "MasqueradeAmbient"
	ProcessBinding    Reason = "ProcessBinding"
)

// ReasonTexts explains each reason in one sentence; docs/reasons.md is made of it.
var ReasonTexts = map[Reason]string{
	NotVirtLauncher:    `The pod is neither a virt-launcher pod (label kubevirt.io: virt-launcher) nor opted in (meshvirt.io/inject: "true").`,
	HostNetwork:        "The pod uses the node's network; rules written there would hit every pod of the node.",
	OptedOut:           `The pod opted out (meshvirt.io/inject: "false" or meshvirt.io/mode: off), or its namespace did (label meshvirt.io/inject: disabled).`,
	NoMesh:             "No mesh that MeshVirt can adapt has injected its proxy into the pod.",
	NoInterception:     "The mesh does not redirect this pod's traffic (Istio's interceptionMode NONE, Consul without transparent proxy).",
	MeshUnsupported:    "The mesh (Linkerd, Kuma, Consul) is recognised, but not adapted yet; a warning says what happens to the VM there and what helps.",
	AmbientUnsupported: "The pod is in Istio's ambient mode with a network binding that no mode supports there yet; a warning says what works today.",
	InterceptionTPROXY: "Istio intercepts this pod's inbound traffic by TPROXY and is too old (before 1.11) to leave the guest's interface alone; set sidecar.istio.io/interceptionMode: REDIRECT.",
	NoVirtualInterface: "Neither the mesh's settings nor the VMI name an interface that the guest is behind; set meshvirt.io/interfaces if there is one.",
	BindingUnsupported: "No mode supports the network binding of the VMI yet.",
	Invalid:            "Annotations or containers of the pod are invalid; the response names each.",

	Requested:         "The annotation meshvirt.io/mode asked for this mode.",
	ConfiguredDefault: "The webhook is configured with this mode as its default.",
	MasqueradeAmbient: "A VM with masquerade binding in an ambient mesh: the kernel path lets ztunnel serve every flow.",
	MasqueradeSidecar: "A VM with masquerade binding beside an Istio sidecar: the kernel path serves every flow.",
	ProcessBinding:    "The guest's traffic comes from a process of the pod (passt, slirp), which every mesh redirects by itself.",
}

// Advice is what the user can do about a pod that is left alone for the reason.
func Advice(r Reason) string {
	switch r {
	case NotVirtLauncher:
		return `Nothing, if no virtual machine is in it. Else set the annotations meshvirt.io/inject: "true" and meshvirt.io/interfaces.`
	case HostNetwork:
		return "Run the virtual machine on the pod network."
	case OptedOut:
		return "Remove meshvirt.io/inject (annotation or label), or set the annotation meshvirt.io/mode to another mode."
	case NoMesh:
		return `Give the pod as the mesh injected it. For Istio, label the namespace istio-injection=enabled and set sidecar.istio.io/inject: "true" on the VMI.`
	case NoInterception, InterceptionTPROXY:
		return "Set the annotation sidecar.istio.io/interceptionMode: REDIRECT on the VMI, and start the virtual machine again."
	case NoVirtualInterface:
		return "If the guest is behind an interface on the pod network, set the annotation meshvirt.io/interfaces, such as k6t-eth0."
	case BindingUnsupported:
		return "Give the VMI's interface on the pod network the masquerade binding."
	case Invalid:
		return "Correct what the errors name."
	}
	return "Read the warnings; a sidecar of Istio in interception mode REDIRECT beside a masquerade VM is adapted."
}

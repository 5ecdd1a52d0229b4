// Package plan is the contract between the two worlds of MeshVirt: the admission webhook writes a
// Plan into the containers it injects, the data plane (cmd/rules, cmd/proxy) reads it. The package
// imports nothing but the standard library, so that neither world drags the other one in.
//
// A plan holds decisions, not hints: what it says is what the data plane does. The few facts that
// only the running pod knows (does the mesh serve IPv6 here, which DNS servers has it) are observed
// by cmd/rules and cmd/proxy and are named where they matter. What admission could only assume is
// marked as Assumed.
package plan

import (
	"net/netip"
)

// Release is the version of MeshVirt this source is. Webhook and data plane must be of one release:
// Decode refuses a plan of another. The chart's appVersion and the CHANGELOG repeat it (tested).
const Release = "0.1.0"

// Env names the environment variable that carries the encoded plan in an injected container.
const Env = "MESHVIRT_PLAN"

// MaxEncoded is the largest encoded plan, in bytes, that Encode gives out. The kernel limits one
// environment string to 32 pages (128 KiB, execve(2), MAX_ARG_STRLEN); the margin is for its name.
const MaxEncoded = 120 << 10

// OwnMarks are the bits of marks, of packets and connections, that the data plane uses itself.
const OwnMarks = 0x30000

// Mode says how the traffic of a virtual machine gets into the mesh.
type Mode string

// The modes. docs/datapath.md has a packet's way for each.
const (
	// Auto lets the webhook choose by network binding and mesh. It never occurs in a Plan.
	Auto Mode = "auto"
	// Off leaves the pod alone. It never occurs in a Plan.
	Off Mode = "off"
	// Native keeps Istio's own redirect of virtual interfaces; the only rules of ours are the guard's.
	Native Mode = "native"
	// Rules owns all VM traffic in one nftables table; nothing passes user space but the mesh's proxy.
	Rules Mode = "rules"
	// NATProxy adds a relay in user space that dials from inside the pod, so that any mesh's
	// redirection of the pod's own traffic catches it.
	NATProxy Mode = "nat-proxy"
	// TProxy is NATProxy with the guest's connections brought to the relay by TPROXY instead of by a
	// translation of their destination. Its rules must be written again once the interface exists.
	TProxy Mode = "tproxy"
	// Ambient is Rules for a pod without a sidecar, whose traffic the proxy of its node takes inside the
	// pod's network namespace (Istio's ztunnel). The guest then sees its clients' own addresses.
	Ambient Mode = "ambient"
	// Process is for a VM whose traffic already comes from a process of the pod (passt, slirp), which any
	// mesh redirects: nothing is injected, settings that would disturb are removed. It never occurs in a Plan.
	Process Mode = "process"
)

// Relayed reports whether the mode has a relay: its plans have a Proxy.
func (m Mode) Relayed() bool { return m == NATProxy || m == TProxy }

// Modes lists every mode a user may ask for, in the order in which documentation and errors name them.
var Modes = []Mode{Auto, Native, Rules, NATProxy, TProxy, Ambient, Process, Off}

// Plan is what the data plane of one pod has to do.
type Plan struct {
	// Release is the MeshVirt version that wrote the plan. Decode compares it with its own.
	Release string `json:"release"`
	// Mode is Native, Rules, NATProxy, TProxy or Ambient.
	Mode Mode `json:"mode"`
	// Interfaces are the virtual interfaces that the guest's packets come in by, such as k6t-eth0.
	// They need not exist yet when rules are written: KubeVirt makes them after init containers ran.
	Interfaces []string `json:"interfaces"`
	// PodInterface is the interface by which the pod's own network comes in, such as eth0.
	PodInterface string `json:"podInterface"`
	// Guest is the virtual machine behind Interfaces.
	Guest Guest `json:"guest"`
	// Mesh is what the mesh's own redirection in this pod looks like.
	Mesh Mesh `json:"mesh"`
	// Outbound chooses which TCP connections of the guest go into the mesh.
	Outbound Outbound `json:"outbound"`
	// Inbound chooses which TCP connections to the pod go through the mesh to the guest.
	Inbound Inbound `json:"inbound"`
	// Proxy is set in the modes NATProxy and TProxy only.
	Proxy *Proxy `json:"proxy,omitempty"`
	// WatchPort serves /metrics, /readyz and /livez of cmd/rules -watch over HTTP on the pod's addresses. It
	// is always set in mode TProxy; zero means that the rules are written once.
	WatchPort uint16 `json:"watchPort,omitempty"`
	// Assumed says what of the plan is not certain.
	Assumed Assumed `json:"assumed,omitzero"`
}

// Assumed marks what are KubeVirt's defaults, stated by neither the user nor the VMI. The data plane takes what it finds in
// the pod in their place, if it runs on there (WatchPort). What is not assumed is certain: if the pod
// contradicts it, something is wrong, and the data plane says so.
type Assumed struct {
	// Interfaces are the names in Interfaces and PodInterface.
	Interfaces bool `json:"interfaces,omitempty"`
	// Guest are the addresses in Guest.
	Guest bool `json:"guest,omitempty"`
}

// Guest describes the virtual machine as the pod's network namespace sees it.
type Guest struct {
	// IPv4 and IPv6 are the guest's addresses on the virtual interface. An invalid (zero) address
	// means that the guest has none in that family. KubeVirt's masquerade binding gives 10.0.2.2 and
	// fd10:0:2::2 unless the VMI sets vmNetworkCIDR or vmIPv6NetworkCIDR.
	IPv4 netip.Addr `json:"ipv4,omitzero"`
	IPv6 netip.Addr `json:"ipv6,omitzero"`
	// TCP and UDP are the ports that the VMI lists for the interface. Both empty means that it lists
	// none, and so, as in KubeVirt, every port is the guest's.
	TCP []PortRange `json:"tcp,omitempty"`
	UDP []PortRange `json:"udp,omitempty"`
}

// AllPorts reports whether every port is the guest's, because its interface lists none.
func (g Guest) AllPorts() bool { return len(g.TCP) == 0 && len(g.UDP) == 0 }

// Mesh describes the proxy of the mesh and its redirection, as istio-init's arguments (or the
// annotations that istio-cni reads) set it up. The defaults named are Istio's.
type Mesh struct {
	// OutboundPort takes connections that leave the pod (15001); InboundPort those that enter (15006).
	OutboundPort uint16 `json:"outboundPort"`
	InboundPort  uint16 `json:"inboundPort"`
	// UID and GID are the proxy's (1337). What they send is never redirected to the outbound port. Mode
	// Ambient does not look at them: its proxy's packets bear a mark of Istio's, and it may be root.
	UID uint32 `json:"uid"`
	GID uint32 `json:"gid"`
	// OwnPorts are ports on which the mesh's containers serve the outside themselves: health,
	// metrics, HBONE (15008, 15020, 15021, 15090). They never go to the guest. In mode Ambient it is the
	// port of the mesh's tunnels alone (15008), by which all other members come.
	OwnPorts []uint16 `json:"ownPorts"`
	// DialsLoopback says that the mesh's proxy dials what it lets in at 127.0.0.1, where it takes the
	// application to listen, and not only at the pod's address from 127.0.0.6 (Istio before 1.10).
	DialsLoopback bool `json:"dialsLoopback,omitempty"`
	// DualStack says that the mesh was told to serve both families. Without it the mesh serves IPv6
	// only if its init put ::6 on the loopback device, which cmd/rules observes.
	DualStack bool `json:"dualStack,omitempty"`
	// TProxyMark is set if the mesh takes inbound connections by TPROXY (Istio's interceptionMode), else 0.
	// It is the mark (1337) that the mesh's policy route delivers in the pod whatever the destination, and
	// that the proxy's own connections to the application bear (SO_MARK): it dials that from the
	// client's address. The proxy is then root, to be told by GID.
	TProxyMark uint32 `json:"tproxyMark,omitempty"`
	// DNS is set if the mesh captures the pod's DNS queries; in Istio's ambient mesh always all of them.
	DNS *DNS `json:"dns,omitempty"`
}

// DNS is the mesh's DNS proxy.
type DNS struct {
	// Port on which it listens on the loopback address (15053).
	Port uint16 `json:"port"`
	// All captures every query to port 53, not only those to the servers of /etc/resolv.conf.
	All bool `json:"all,omitempty"`
}

// Outbound chooses by destination. Exclusions win over inclusions, ports are TCP ports.
type Outbound struct {
	// ExcludeCIDRs and ExcludePorts go straight out, past the mesh.
	ExcludeCIDRs []netip.Prefix `json:"excludeCIDRs,omitempty"`
	ExcludePorts []uint16       `json:"excludePorts,omitempty"`
	// All sends everything not excluded into the mesh; IncludeCIDRs is then empty. Otherwise only
	// IncludeCIDRs go into the mesh, and with none nothing does.
	All          bool           `json:"all,omitempty"`
	IncludeCIDRs []netip.Prefix `json:"includeCIDRs,omitempty"`
	// IncludePorts go into the mesh whatever their destination (Istio's includeOutboundPorts).
	IncludePorts []uint16 `json:"includePorts,omitempty"`
}

// Inbound chooses by destination port.
type Inbound struct {
	// ExcludePorts go straight to the guest, past the mesh, whether its interface lists them or not.
	ExcludePorts []uint16 `json:"excludePorts,omitempty"`
	// All sends everything not excluded through the mesh; IncludePorts is then empty. Otherwise only
	// IncludePorts go through the mesh and the other ports of the guest straight to it.
	All          bool     `json:"all,omitempty"`
	IncludePorts []uint16 `json:"includePorts,omitempty"`
}

// MaxNameservers is the number of the pod's nameservers that count, as for resolvers (resolv.conf(5)).
const MaxNameservers = 3

// Proxy configures cmd/proxy. All its ports are on the pod's addresses, and those of TCP refused as destinations.
type Proxy struct {
	// UID is the user that the proxy runs as: never the mesh's, whose traffic skips redirection. It is
	// root in mode TProxy, whose listener takes a capability, and in no other.
	UID uint32 `json:"uid"`
	// OutboundPort takes the guest's connections, InboundPort those that the mesh's proxy sends to
	// the guest. StatusPort serves /metrics, /readyz and /livez over HTTP.
	OutboundPort uint16 `json:"outboundPort"`
	InboundPort  uint16 `json:"inboundPort"`
	StatusPort   uint16 `json:"statusPort"`
	// DNSPort takes the guest's DNS queries over UDP to the first of the pod's nameservers, and the next ports
	// those to its others (MaxNameservers at most): they are asked again from inside the pod, where the mesh
	// captures them. Zero means that nothing takes them, as when Mesh.DNS is nil.
	DNSPort uint16 `json:"dnsPort,omitempty"`
	// DrainSeconds bounds how long open connections may go on after SIGTERM. Zero cuts them at once.
	DrainSeconds int64 `json:"drainSeconds"`
}

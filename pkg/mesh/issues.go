package mesh

import (
	"slices"

	"github.com/meshvirt/meshvirt/pkg/cmdline"
	"github.com/meshvirt/meshvirt/pkg/plan"
)

// Evidence is what the known issues of Istio show themselves by in a pod that is ready to go.
type Evidence struct {
	// Input is what the redirection is read from.
	Input
	// Mode is the one that the pod got.
	Mode plan.Mode
	// Plan is what was decided, empty if nothing was injected; of interest in mode native, which has no
	// rules for most of it.
	Plan plan.Plan
	// RestartPolicy tells that istio-init or istio-validation has one: they run once.
	RestartPolicy bool
	// MixedVolumes have an image and another source, which no pod may have.
	MixedVolumes []string
}

// An Issue is a defect or a limit of Istio's releases that the user can do something about.
type Issue struct {
	Name string
	// Releases that have it; none means that the pod itself shows it, whatever the release.
	Releases []span
	shows    func(Evidence) bool
	// What happens, and Fix. A line each: API servers may cut a warning after 256 characters.
	What, Fix string
}

// Issues is every known one.
var Issues = []Issue{
	{
		Name: "LostKubevirtInterfaces", // https://github.com/istio/istio/issues/57662
		Releases: []span{
			between("1.25.0", "1.25.5"),
			between("1.26.0", "1.26.4"),
			between("1.27.0", "1.27.1"),
		},
		shows: func(e Evidence) bool {
			return e.CNI && e.Annotations[AnnotationKubevirtInterfaces] != "" && e.Annotations[AnnotationRerouteInterfaces] == ""
		},
		What: "istio-cni of Istio 1.25.0-1.25.5, 1.26.0-1.26.4 and 1.27.0-1.27.1 does not see " + AnnotationKubevirtInterfaces + ": what the guest opens is taken for inbound traffic and lost",
		Fix:  "set " + AnnotationRerouteInterfaces + " on the VMI as well (KubeVirt does since 1.7), or upgrade Istio to 1.26.5, 1.27.2 or newer",
	},
	{
		// The injector's Kubernetes library must know native sidecars: a list that is patched by index
		// leaves fields that it does not know on the wrong element.
		Name:  "RestartPolicyMisplaced",
		shows: func(e Evidence) bool { return e.RestartPolicy },
		What:  "restartPolicy of another container is now on istio-init or istio-validation: Istio's injector (1.18 and older) does not know native sidecars, and the pod will hang or be refused",
		Fix:   "upgrade Istio's control plane to 1.26 or newer",
	},
	{
		Name:  "ImageVolumeMisplaced",
		shows: func(e Evidence) bool { return len(e.MixedVolumes) > 0 },
		What:  "a volume has an image and another source: Istio's injector (seen in 1.18 and 1.22) does not know image volumes and merged two, and the API server will refuse the pod",
		Fix:   "upgrade Istio's control plane to 1.26 or newer, or switch KubeVirt's feature gate ImageVolume off",
	},
	{
		Name:     "PortSSHExempt",
		Releases: []span{between("0.8.0", "1.12.99")},
		shows:    func(e Evidence) bool { return e.Mode != plan.Off && e.Mode != plan.Process },
		What:     "Istio before 1.13 leaves inbound port 22 out of the mesh whatever it is told: neither mTLS nor authorization policies hold for SSH to the VM",
		Fix:      "upgrade Istio to 1.13 or newer",
	},
	{
		Name:     "NoReroute",
		Releases: []span{between("0.1.0", "1.0.99")},
		shows:    func(e Evidence) bool { return e.Mode == plan.Native },
		What:     "Istio before 1.1 cannot reroute an interface: in mode native what the guest opens is taken for inbound traffic",
		Fix:      "use mode rules or nat-proxy, or upgrade Istio",
	},
	{
		Name: "KubeVirtIgnoresMesh",
		shows: func(e Evidence) bool {
			return e.Mode == plan.Native && e.Annotations[annotationInject] != "true"
		},
		What: "in mode native KubeVirt forwards inbound traffic to the guest past the mesh unless the VMI asks for injection by itself, and the sidecar's own ports with it: the pod may never be ready",
		Fix:  "set the annotation " + annotationInject + `: "true" on the VMI, or use mode rules or nat-proxy`,
	},
	{
		Name: "NativeIgnoresExclusions",
		shows: func(e Evidence) bool {
			// 15020 is istio-cni's default, and no port of a peer.
			ports := slices.DeleteFunc(slices.Clone(e.Plan.Outbound.ExcludePorts), func(p uint16) bool { return p == IstioAgentPort })
			return e.Mode == plan.Native && len(ports)+len(e.Plan.Outbound.ExcludeCIDRs) > 0
		},
		What: "in mode native outbound exclusions do not hold for the guest: Istio applies them to the pod's own processes only",
		Fix:  "use mode rules or nat-proxy",
	},
	{
		Name: "NativeRefuses",
		shows: func(e Evidence) bool {
			return e.Mode == plan.Native && e.Annotations[annotationInject] == "true" && len(e.Plan.Guest.UDP)+len(e.Plan.Inbound.ExcludePorts) > 0
		},
		What: "in mode native inbound UDP, and TCP to excluded inbound ports, is refused: KubeVirt leaves both to the pod in its Istio mode",
		Fix:  "use mode rules or nat-proxy",
	},
	{
		Name: "NativeSSH",
		shows: func(e Evidence) bool {
			ssh := func(r plan.PortRange) bool { return r.Contains(22) }
			return e.Mode == plan.Native && e.Annotations[annotationInject] == "true" &&
				(e.Plan.Guest.AllPorts() || slices.ContainsFunc(e.Plan.Guest.TCP, ssh))
		},
		What: "in mode native KubeVirt forwards inbound port 22 to the guest past the mesh: neither mTLS nor authorization policies hold for SSH to the VM",
		Fix:  "use mode rules or nat-proxy",
	},
}

// annotationInject is what KubeVirt looks for on a VMI to choose its Istio mode; it copies it to the pod.
const annotationInject = "sidecar.istio.io/inject"

// KnownIssues gives those that the evidence shows.
func KnownIssues(e Evidence) []Issue {
	var all []Issue
	r := cmdline.ReleaseOf(e.Image)
	for _, i := range Issues {
		inRange := slices.ContainsFunc(i.Releases, func(s span) bool { return s.holds(r) })
		if (inRange || len(i.Releases) == 0) && i.shows(e) {
			all = append(all, i)
		}
	}
	return all
}

// A span is a closed range of releases.
type span struct{ first, last cmdline.Release }

func between(first, last string) span {
	return span{cmdline.ParseRelease(first), cmdline.ParseRelease(last)}
}

// holds reports whether r is known, to the patch, to be one of the span.
func (s span) holds(r cmdline.Release) bool {
	return r.Exact() && s.first.Compare(r) <= 0 && r.Compare(s.last) <= 0
}

// Package check says what is wrong with an installation of MeshVirt and with the virtual machines beside it:
// objects of a cluster -> findings. It does no I/O. The whole is the table of checks below.
package check

import (
	"slices"
	"time"

	admissionregistration "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/version"
)

// Cluster is what was read of a cluster, or of manifests.
type Cluster struct {
	// Now is the time by which certificates and starts of containers are judged.
	Now time.Time
	// Server is the API server's version; nil if it is not known.
	Server *version.Info
	// Unknown are the resources that were not read, by name as in Resources, each with the reason. An empty one
	// means that nobody asked; any other is a finding. Checks that need such a resource are left out.
	Unknown map[string]string
	// NoKubeVirt says that the API server serves no virtual machines.
	NoKubeVirt bool

	// Configurations are those of MeshVirt and of all others.
	Configurations []admissionregistration.MutatingWebhookConfiguration
	// Services, EndpointSlices and Deployments are those that MeshVirt's configurations lead to.
	Services       []corev1.Service
	EndpointSlices []discovery.EndpointSlice
	Deployments    []appsv1.Deployment
	Namespaces     []corev1.Namespace
	// Machines are VirtualMachines, Instances VirtualMachineInstances.
	Machines, Instances []Machine
	// Pods are virt-launcher pods and those that opted in.
	Pods []corev1.Pod
}

// Object names what a finding is about. Name is empty if it is about all of a kind.
type Object struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name,omitempty"`
}

// String is the object for people, such as "Pod vms/virt-launcher-web".
func (o Object) String() string {
	s := o.Kind
	if o.Name != "" {
		s += " "
		if o.Namespace != "" {
			s += o.Namespace + "/"
		}
		s += o.Name
	}
	return s
}

// A Finding is one thing that is wrong.
type Finding struct {
	// Severity is that of the code.
	Severity Severity `json:"severity"`
	Code     Code     `json:"code"`
	Object   Object   `json:"object"`
	// Message says what is wrong and what follows from it, Fix what to do.
	Message string `json:"message"`
	Fix     string `json:"fix,omitempty"`
}

// A check looks for some kinds of fault. It does no I/O and changes nothing.
type check struct {
	name  string
	needs []string // resources without which it cannot tell
	find  func(*view) []Finding
}

var checks = []check{
	{"what could not be read", nil, unreadable},
	{"MeshVirt is installed once", []string{Configurations}, installed},
	{"the order of admission", []string{Configurations}, order},
	{"who is trusted", []string{Configurations}, trust},
	{"the Service and who answers", []string{Configurations, Services, EndpointSlices}, endpoints},
	{"releases", []string{Configurations, Deployments}, releases},
	{"namespaces", []string{Namespaces}, namespaces},
	{"annotations and labels", nil, settings},
	{"what KubeVirt says of refused pods", nil, refusals},
	{"pods that MeshVirt has not adapted", []string{Pods}, leftAlone},
	{"what admission would say of pods now", []string{Pods}, again},
	{"MeshVirt's containers", []string{Pods}, containers},
}

// Report is what Run gives.
type Report struct {
	Summary
	// Findings are in order: errors first, and within each severity the installation before namespaces, those before
	// virtual machines, and those before pods.
	Findings []Finding `json:"findings"`
}

// Count gives how many findings have the severity.
func (r Report) Count(s Severity) (n int) {
	for _, f := range r.Findings {
		if f.Severity == s {
			n++
		}
	}
	return n
}

// Run looks at a cluster and says what is wrong.
func Run(c *Cluster) Report {
	v := look(c)
	r := Report{Summary: v.summary(), Findings: []Finding{}}
	for _, check := range checks {
		if !slices.ContainsFunc(check.needs, v.unknown) {
			r.Findings = append(r.Findings, check.find(v)...)
		}
	}
	slices.SortStableFunc(r.Findings, func(a, b Finding) int {
		return slices.Index(Severities, a.Severity) - slices.Index(Severities, b.Severity)
	})
	return r
}

func finding(code Code, object Object, message, fix string) Finding {
	return Finding{Codes[code].Severity, code, object, message, fix}
}

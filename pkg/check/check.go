// Package check says what is wrong with an installation of MeshVirt and with the virtual machines beside it:
// objects of a cluster -> findings. It does no I/O. The whole is the table of checks below.
package check

import (
	"slices"

	"github.com/meshvirt/meshvirt/pkg/inventory"
)

// A Finding is one thing that is wrong.
type Finding struct {
	// Severity is that of the code.
	Severity Severity         `json:"severity"`
	Code     Code             `json:"code"`
	Object   inventory.Object `json:"object"`
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
	{"MeshVirt is installed once", []string{inventory.Configurations}, installed},
	{"the order of admission", []string{inventory.Configurations}, order},
	{"who is trusted", []string{inventory.Configurations}, trust},
	{"the Service and who answers", []string{inventory.Configurations, inventory.Services, inventory.EndpointSlices}, endpoints},
	{"a pod in a dry run", nil, tried},
	{"releases", []string{inventory.Configurations, inventory.Deployments}, releases},
	{"namespaces", []string{inventory.Namespaces}, namespaces},
	{"annotations and labels", nil, settings},
	{"what KubeVirt says of refused pods", nil, refusals},
	{"pods that MeshVirt has not adapted", []string{inventory.Pods}, leftAlone},
	{"what admission would say of pods now", []string{inventory.Pods}, again},
	{"MeshVirt's containers", []string{inventory.Pods}, containers},
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
func Run(c *inventory.Cluster) Report {
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

func finding(code Code, object inventory.Object, message, fix string) Finding {
	return Finding{Codes[code].Severity, code, object, message, fix}
}

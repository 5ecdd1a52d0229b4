// Package mutate adapts a virt-launcher pod to the mesh that injected its proxy into it: Pod -> Pod
// and a Report. It does no I/O. The whole is the table of steps below, read top to bottom.
package mutate

import (
	"fmt"
	"maps"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/meshvirt/meshvirt/pkg/annotations"
	"github.com/meshvirt/meshvirt/pkg/decision"
	"github.com/meshvirt/meshvirt/pkg/kubevirt"
	"github.com/meshvirt/meshvirt/pkg/mesh"
	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/record"
	"github.com/meshvirt/meshvirt/pkg/templates"
)

// Config holds what is the same for every pod.
type Config struct {
	// Image is the data-plane image of the injected containers.
	Image templates.Image
	// DefaultMode is for pods whose annotations name no mode. Empty means plan.Auto.
	DefaultMode plan.Mode
}

// Facts are what is known of a pod beyond the pod itself. The zero Facts are valid: the pod alone
// then decides.
type Facts struct {
	// VMI is the VirtualMachineInstance that owns the pod; nil if it is not known.
	VMI *kubevirt.VMI
	// Unknown says why VMI is not known; empty if nobody asked. It becomes a warning.
	Unknown string
	// NamespaceLabels are those of the pod's namespace; nil if they are not known.
	NamespaceLabels map[string]string
	// NoNativeSidecars says that the API server drops the restartPolicy of init containers, without which a
	// pod would wait for the end of our relay forever: Kubernetes before 1.29, unless its feature gate
	// SidecarContainers is set (KEP-753).
	NoNativeSidecars bool
}

// Report says what Apply did and why.
type Report struct {
	// Mode is the mode that the pod got; plan.Off if it was left alone.
	Mode plan.Mode
	// Reason is the reason for Mode.
	Reason decision.Reason
	// Mesh is "istio", "istio-ambient", "linkerd", "kuma" or "consul", or empty if none was found.
	Mesh string
	// Changes has a line for each change, in order. It is empty if the pod came out as it went in.
	Changes []string
	// Warnings are for the user: doubtful, but safe.
	Warnings []string
	// Issues are the mesh's known ones that the pod shows; what they say is among Warnings too.
	Issues []mesh.Issue
	// Plan is what the injected containers were given; nil if none were.
	Plan *plan.Plan
}

// String is the report for people, a line each.
func (r Report) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "mode: %s\nreason: %s\n", r.Mode, r.Reason)
	if r.Mesh != "" {
		fmt.Fprintf(&b, "mesh: %s\n", r.Mesh)
	}
	for _, c := range r.Changes {
		fmt.Fprintf(&b, "change: %s\n", c)
	}
	for _, w := range r.Warnings {
		fmt.Fprintf(&b, "warning: %s\n", w)
	}
	return b.String()
}

// A Step makes one change to a pod it owns, or finds out one thing that later steps need. It does no
// I/O and, run twice, changes nothing more. A reason ends the table: the pod is to be left alone.
type Step struct {
	Name string
	Do   func(*corev1.Pod, *state) decision.Reason
}

var steps = []Step{
	{"read what the user set", readSettings},
	{"check the containers", checkContainers},
	{"read what the mesh left", readMesh},
	{"choose the mode", chooseMode},
	{"find the guest's interface", findInterface},
	{"make the plan", makePlan},
	{"move the interface", moveInterface},
	{"inject the rules", injectRules},
	{"inject the proxy", injectProxy},
	{"withhold the API token", withholdToken},
	{"say what is around the pod", sayFacts},
	{"write the status", writeStatus},
	{"record what was there before", writeRecord},
	{"count the annotations' bytes", checkSize},
}

// state is what steps hand on to later steps.
type state struct {
	before   *corev1.Pod // as it went in; not to be changed
	cfg      Config
	facts    Facts
	settings annotations.Settings
	report   Report
	errs     field.ErrorList

	previous   record.Status    // what an earlier admission of the same pod wrote
	meshInit   int              // index of the mesh's init container, negative without one
	capture    mesh.Capture     // what it redirects
	advice     []string         // for a VM beside a mesh that is not adapted
	interfaces []string         // the guest's
	binding    kubevirt.Binding // of the guest's interface; empty if unknown
	plan       plan.Plan
}

func (s *state) changed(format string, args ...any) {
	s.report.Changes = append(s.report.Changes, fmt.Sprintf(format, args...))
}

func (s *state) warn(format string, args ...any) {
	s.report.Warnings = append(s.report.Warnings, fmt.Sprintf(format, args...))
}

// invalid records an error; the pod will be denied.
func (s *state) invalid(errs ...*field.Error) decision.Reason {
	s.errs = append(s.errs, errs...)
	return decision.Invalid
}

var (
	containersPath     = field.NewPath("spec", "containers")
	initContainersPath = field.NewPath("spec", "initContainers")
)

// Apply gives the adapted pod and says what it did. The pod that goes in is not touched; if it is to
// be left alone, it also comes out. With errors the pod must be denied: each names a field and the
// value wanted.
func Apply(pod *corev1.Pod, facts Facts, cfg Config) (*corev1.Pod, Report, field.ErrorList) {
	s := &state{before: pod, cfg: cfg, facts: facts, report: Report{Mode: plan.Off}}
	if s.report.Reason = notOurs(pod, facts); s.report.Reason != "" {
		return pod, s.report, nil
	}
	out := copyForSteps(pod)
	for _, step := range steps {
		if reason := step.Do(out, s); reason != "" {
			s.report.Mode, s.report.Reason, s.report.Changes, s.report.Plan = plan.Off, reason, nil, nil
			s.warnOfMesh(pod)
			return pod, s.report, s.errs
		}
	}
	s.warnOfMesh(out)
	return out, s.report, nil
}

// notOurs is the cheap part of the decision, made before the pod is copied.
func notOurs(pod *corev1.Pod, facts Facts) decision.Reason {
	chosen := func(v string) bool {
		return pod.Annotations[annotations.Inject] == v || pod.Labels[annotations.Inject] == v
	}
	switch {
	case chosen("false"), facts.NamespaceLabels[annotations.Inject] == OptedOutValue:
		return decision.OptedOut
	case !kubevirt.IsLauncher(pod.Labels) && !chosen("true"):
		return decision.NotVirtLauncher
	case pod.Spec.HostNetwork:
		return decision.HostNetwork
	}
	return ""
}

// copyForSteps copies what steps may change, two levels deep: annotations, and init containers,
// whose fields steps replace and never write into. A whole deep copy costs as much as all steps.
func copyForSteps(pod *corev1.Pod) *corev1.Pod {
	out := *pod
	out.Annotations = maps.Clone(pod.Annotations)
	out.Spec.InitContainers = append(make([]corev1.Container, 0, len(pod.Spec.InitContainers)+2), pod.Spec.InitContainers...) // 2: ours
	return &out
}

package mutate

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/meshvirt/meshvirt/pkg/annotations"
	"github.com/meshvirt/meshvirt/pkg/kubevirt"
	"github.com/meshvirt/meshvirt/pkg/mesh"
	"github.com/meshvirt/meshvirt/pkg/plan"
)

// A decision is a row of the table that mode auto stands for. The first row that fits decides.
// docs/auto.md is made of it.
type decision struct {
	bindings []kubevirt.Binding // none: any
	meshes   []string           // as in Report.Mesh; none: any
	when     *fact              // nil: always
	mode     plan.Mode
	reason   Reason
}

// The meshes of the table.
const (
	noMesh  = ""
	istio   = "istio"
	ambient = mesh.AmbientName
)

// A fact is a condition beside binding and mesh.
type fact struct {
	text  string
	holds func(*state) bool
}

var (
	notRedirected  = &fact{"the mesh does not redirect the pod's traffic", func(s *state) bool { return s.capture.Interception == mesh.InterceptionNone }}
	unavoidable    = &fact{"the mesh intercepts by TPROXY, and cannot leave an interface alone", func(s *state) bool { return byTPROXY(s) && s.capture.CannotExclude }}
	interfaceGiven = &fact{"`meshvirt.io/interfaces` names the guest's interface", func(s *state) bool { return len(s.settings.Interfaces) > 0 }}
	noneGiven      = &fact{"`meshvirt.io/interfaces` is not set", func(s *state) bool { return len(s.settings.Interfaces) == 0 }}
	rerouted       = &fact{"the mesh was told to reroute an interface", func(s *state) bool { return len(s.capture.RerouteInterfaces) > 0 }}
	found          = &fact{"an earlier admission found the guest's interface", func(s *state) bool { return len(s.previous.Interfaces) > 0 }}
	wasProcess     = &fact{"an earlier admission chose mode process", func(s *state) bool { return s.previous.Mode == plan.Process && s.previous.Reason == ProcessBinding }}
)

func byTPROXY(s *state) bool { return s.capture.Interception == mesh.InterceptionTPROXY }

var decisions = []decision{
	{meshes: []string{noMesh}, mode: plan.Off, reason: NoMesh},
	{when: notRedirected, mode: plan.Off, reason: NoInterception},
	{bindings: []kubevirt.Binding{kubevirt.BindingPasst, kubevirt.BindingSlirp}, when: noneGiven, mode: plan.Process, reason: ProcessBinding},
	{bindings: []kubevirt.Binding{kubevirt.BindingUnknown}, when: wasProcess, mode: plan.Process, reason: ProcessBinding},
	{meshes: []string{"linkerd", "kuma", "consul"}, mode: plan.Off, reason: MeshUnsupported},
	{meshes: []string{ambient}, when: interfaceGiven, mode: plan.Ambient, reason: MasqueradeAmbient},
	{bindings: []kubevirt.Binding{kubevirt.BindingMasquerade}, meshes: []string{ambient}, mode: plan.Ambient, reason: MasqueradeAmbient},
	{bindings: []kubevirt.Binding{kubevirt.BindingUnknown}, meshes: []string{ambient}, when: rerouted, mode: plan.Ambient, reason: MasqueradeAmbient},
	{bindings: []kubevirt.Binding{kubevirt.BindingUnknown}, meshes: []string{ambient}, when: found, mode: plan.Ambient, reason: MasqueradeAmbient},
	{meshes: []string{ambient}, mode: plan.Off, reason: AmbientUnsupported},
	{meshes: []string{istio}, when: unavoidable, mode: plan.Off, reason: InterceptionTPROXY},
	{meshes: []string{istio}, when: interfaceGiven, mode: plan.Rules, reason: MasqueradeSidecar},
	{bindings: []kubevirt.Binding{kubevirt.BindingMasquerade}, meshes: []string{istio}, mode: plan.Rules, reason: MasqueradeSidecar},
	{bindings: []kubevirt.Binding{kubevirt.BindingBridge, kubevirt.BindingPlugin}, meshes: []string{istio}, mode: plan.Off, reason: BindingUnsupported},
	{bindings: []kubevirt.Binding{kubevirt.BindingNone, kubevirt.BindingSRIOV}, meshes: []string{istio}, mode: plan.Off, reason: NoVirtualInterface},
	{bindings: []kubevirt.Binding{kubevirt.BindingUnknown}, meshes: []string{istio}, when: rerouted, mode: plan.Rules, reason: MasqueradeSidecar},
	{bindings: []kubevirt.Binding{kubevirt.BindingUnknown}, meshes: []string{istio}, when: found, mode: plan.Rules, reason: MasqueradeSidecar},
	{bindings: []kubevirt.Binding{kubevirt.BindingUnknown}, meshes: []string{istio}, mode: plan.Off, reason: NoVirtualInterface},
}

func (d decision) fits(s *state) bool {
	return (len(d.bindings) == 0 || slices.Contains(d.bindings, s.binding)) &&
		(len(d.meshes) == 0 || slices.Contains(d.meshes, s.report.Mesh)) &&
		(d.when == nil || d.when.holds(s))
}

// decide is mode auto. Every binding beside every mesh has a row (tested).
func decide(s *state) decision {
	return decisions[slices.IndexFunc(decisions, func(d decision) bool { return d.fits(s) })]
}

// chooseMode takes what the user asked for, else the configured default, else what suits the binding
// and the mesh. Nobody can ask for rules where there is nothing to write them for; only that the VM's
// traffic comes from a process is something that the user may know better.
func chooseMode(_ *corev1.Pod, s *state) Reason {
	if s.facts.VMI != nil {
		s.binding = s.facts.VMI.Binding
	}
	d := decide(s)
	wish := s.settings.Mode
	switch {
	case wish == plan.Process && d.reason != NoMesh && d.reason != NoInterception:
		if d.mode != plan.Process {
			d.mode, d.reason = plan.Process, Requested
		}
		if s.binding == kubevirt.BindingMasquerade || s.binding == kubevirt.BindingBridge {
			s.warn("annotation %s: the VM has %s binding: its traffic comes by an interface, not from a process, and will miss the mesh", annotations.Mode, s.binding)
		}
	case d.mode == plan.Off:
		return d.reason
	case d.mode == plan.Process:
		if wish != plan.Auto {
			s.warn("annotation %s: %s has no effect, the VM's traffic comes from a process of the pod, which the mesh redirects by itself", annotations.Mode, wish)
		}
	case (d.mode == plan.Ambient) != (wish == plan.Ambient) && wish != plan.Auto:
		s.invalid(field.Invalid(annotationsPath.Key(annotations.Mode), string(wish), "want auto or "+string(d.mode)+": mode ambient is for pods of an ambient mesh, which have no sidecar, and they have no other"))
		return Invalid
	case wish == plan.Native && byTPROXY(s):
		s.invalid(field.Invalid(annotationsPath.Key(annotations.Mode), string(wish), "want auto, rules, nat-proxy or tproxy: where Istio intercepts by TPROXY, its own interface option takes the guest's connections for inbound ones, and brings none to the guest"))
		return Invalid
	case relayed(wish) && noNativeSidecars(s):
		s.invalid(field.Invalid(annotationsPath.Key(annotations.Mode), string(wish), "want auto, rules or native: the containers of this mode are native sidecars, for which the cluster needs Kubernetes 1.29 or later"))
		return Invalid
	case wish != plan.Auto:
		d.mode, d.reason = wish, Requested
	case relayed(s.cfg.DefaultMode) && noNativeSidecars(s):
		s.warn("the configured default mode %s needs native sidecars, and so Kubernetes 1.29 or later in the cluster; mode %s in its place", s.cfg.DefaultMode, d.mode)
	case s.cfg.DefaultMode == plan.Off:
		return OptedOut
	case d.mode == plan.Ambient || s.cfg.DefaultMode == plan.Ambient, s.cfg.DefaultMode == plan.Native && byTPROXY(s):
		// What is configured is for sidecars, or not for them, or not for such a one.
	case s.cfg.DefaultMode != "" && s.cfg.DefaultMode != plan.Auto:
		d.mode, d.reason = s.cfg.DefaultMode, ConfiguredDefault
	}
	s.report.Mode, s.report.Reason = d.mode, d.reason
	s.proxy = relayed(d.mode)
	return ""
}

// relayed reports whether the mode has a relay.
func relayed(m plan.Mode) bool { return m == plan.NATProxy || m == plan.TProxy }

// noNativeSidecars reports whether a native sidecar of ours would be none. Where the mesh's is one in
// the pod already, the API server knows them, whatever its release.
func noNativeSidecars(s *state) bool {
	return s.facts.NoNativeSidecars && !slices.ContainsFunc(s.before.Spec.InitContainers, func(c corev1.Container) bool {
		return c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
	})
}

// Package decision says which mode a pod gets, and why: the table that mode auto stands for, what a wish counts beside
// it, and the closed set of reasons. It knows a pod by a few facts, and changes none.
package decision

import (
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/meshvirt/meshvirt/pkg/annotations"
	"github.com/meshvirt/meshvirt/pkg/kubevirt"
	"github.com/meshvirt/meshvirt/pkg/mesh"
	"github.com/meshvirt/meshvirt/pkg/plan"
)

// Case is what decides about the mode of a pod.
type Case struct {
	// Binding is that of the guest's interface.
	Binding kubevirt.Binding
	// Mesh is the name of the mesh, as package mesh has it; empty without one.
	Mesh string
	// Interception and CannotExclude are those of the mesh's Capture.
	Interception  mesh.Interception
	CannotExclude bool
	// Given says that the user names the guest's interface, Rerouted that the mesh was told to reroute one,
	// and Found that an earlier admission found it.
	Given, Rerouted, Found bool
	// WasProcess says that an earlier admission chose mode process by the binding.
	WasProcess bool
	// NoNativeSidecars says that the API server does not know them.
	NoNativeSidecars bool
	// Asked is the mode that the user asked for: plan.Auto without a wish, and never plan.Off.
	Asked plan.Mode
	// Default is the configured mode. Empty means plan.Auto.
	Default plan.Mode
}

// Choice is the mode of a pod; plan.Off if it is to be left alone.
type Choice struct {
	Mode   plan.Mode
	Reason Reason
	// Warnings are for the user: what does not become of the wish, or of the default.
	Warnings []string
}

// A row of the table that mode auto stands for. The first row that fits decides.
// docs/auto.md is made of it.
type row struct {
	bindings []kubevirt.Binding // none: any
	meshes   []string           // none: any
	when     *fact              // nil: always
	mode     plan.Mode
	reason   Reason
}

// The meshes of the table.
const (
	noMesh  = ""
	istio   = mesh.IstioName
	ambient = mesh.AmbientName
)

// A fact is a condition beside binding and mesh.
type fact struct {
	text  string
	holds func(Case) bool
}

var (
	notRedirected  = &fact{"the mesh does not redirect the pod's traffic", func(c Case) bool { return c.Interception == mesh.InterceptionNone }}
	unavoidable    = &fact{"the mesh intercepts by TPROXY, and cannot leave an interface alone", func(c Case) bool { return c.byTPROXY() && c.CannotExclude }}
	interfaceGiven = &fact{"`meshvirt.io/interfaces` names the guest's interface", func(c Case) bool { return c.Given }}
	noneGiven      = &fact{"`meshvirt.io/interfaces` is not set", func(c Case) bool { return !c.Given }}
	rerouted       = &fact{"the mesh was told to reroute an interface", func(c Case) bool { return c.Rerouted }}
	found          = &fact{"an earlier admission found the guest's interface", func(c Case) bool { return c.Found }}
	wasProcess     = &fact{"an earlier admission chose mode process", func(c Case) bool { return c.WasProcess }}
)

func (c Case) byTPROXY() bool { return c.Interception == mesh.InterceptionTPROXY }

var table = []row{
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

func (r row) fits(c Case) bool {
	return (len(r.bindings) == 0 || slices.Contains(r.bindings, c.Binding)) &&
		(len(r.meshes) == 0 || slices.Contains(r.meshes, c.Mesh)) &&
		(r.when == nil || r.when.holds(c))
}

// auto is mode auto. Every binding beside every mesh has a row (tested).
func auto(c Case) row {
	return table[slices.IndexFunc(table, func(r row) bool { return r.fits(c) })]
}

// Choose takes what the user asked for, else the configured default, else what suits the binding
// and the mesh. Nobody can ask for rules where there is nothing to write them for; only that the VM's
// traffic comes from a process is something that the user may know better. A wish that cannot be is an
// error, which names the annotation and the value wanted.
func Choose(c Case) (Choice, *field.Error) {
	r := auto(c)
	choice := Choice{Mode: r.mode, Reason: r.reason}
	warn := func(format string, args ...any) {
		choice.Warnings = append(choice.Warnings, fmt.Sprintf(format, args...))
	}
	refuse := func(want string) (Choice, *field.Error) {
		return Choice{Mode: plan.Off, Reason: Invalid}, field.Invalid(annotations.Path.Key(annotations.Mode), string(c.Asked), want)
	}
	switch {
	case c.Asked == plan.Process && r.reason != NoMesh && r.reason != NoInterception:
		if r.mode != plan.Process {
			choice.Mode, choice.Reason = plan.Process, Requested
		}
		if c.Binding == kubevirt.BindingMasquerade || c.Binding == kubevirt.BindingBridge {
			warn("annotation %s: the VM has %s binding: its traffic comes by an interface, not from a process, and will miss the mesh", annotations.Mode, c.Binding)
		}
	case r.mode == plan.Off:
	case r.mode == plan.Process:
		if c.Asked != plan.Auto {
			warn("annotation %s: %s has no effect, the VM's traffic comes from a process of the pod, which the mesh redirects by itself", annotations.Mode, c.Asked)
		}
	case (r.mode == plan.Ambient) != (c.Asked == plan.Ambient) && c.Asked != plan.Auto:
		return refuse("want auto or " + string(r.mode) + ": mode ambient is for pods of an ambient mesh, which have no sidecar, and they have no other")
	case c.Asked == plan.Native && c.byTPROXY():
		return refuse("want auto, rules, nat-proxy or tproxy: where Istio intercepts by TPROXY, its own interface option takes the guest's connections for inbound ones, and brings none to the guest")
	case c.Asked.Relayed() && c.NoNativeSidecars:
		return refuse("want auto, rules or native: the containers of this mode are native sidecars, for which the cluster needs Kubernetes 1.29 or later")
	case c.Asked != plan.Auto:
		choice.Mode, choice.Reason = c.Asked, Requested
	case c.Default.Relayed() && c.NoNativeSidecars:
		warn("the configured default mode %s needs native sidecars, and so Kubernetes 1.29 or later in the cluster; mode %s in its place", c.Default, r.mode)
	case c.Default == plan.Off:
		choice.Mode, choice.Reason = plan.Off, OptedOut
	case r.mode == plan.Ambient || c.Default == plan.Ambient, c.Default == plan.Native && c.byTPROXY():
		// What is configured is for sidecars, or not for them, or not for such a one.
	case c.Default != "" && c.Default != plan.Auto:
		choice.Mode, choice.Reason = c.Default, ConfiguredDefault
	}
	return choice, nil
}

package mutate

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/meshvirt/meshvirt/pkg/annotations"
	"github.com/meshvirt/meshvirt/pkg/kubevirt"
	"github.com/meshvirt/meshvirt/pkg/mesh"
	"github.com/meshvirt/meshvirt/pkg/plan"
)

var (
	allBindings = []kubevirt.Binding{kubevirt.BindingMasquerade, kubevirt.BindingBridge, kubevirt.BindingPasst, kubevirt.BindingSlirp, kubevirt.BindingSRIOV, kubevirt.BindingPlugin, kubevirt.BindingNone, kubevirt.BindingUnknown}
	allMeshes   = []string{noMesh, istio, "istio-ambient", "linkerd", "kuma", "consul"}
)

// Every binding beside every mesh, whatever else is known, has a row, and every row is needed.
func TestDecisions(t *testing.T) {
	used := map[int]int{}
	for _, b := range allBindings {
		for _, m := range allMeshes {
			for _, how := range []mesh.Interception{mesh.InterceptionRedirect, mesh.InterceptionTPROXY, mesh.InterceptionNone} {
				for bits := range 32 {
					s := &state{binding: b, report: Report{Mesh: m}, capture: mesh.Capture{Interception: how, CannotExclude: bits&16 != 0}}
					name := []string{"k6t-eth0"}
					if bits&1 != 0 {
						s.settings.Interfaces = name
					}
					if bits&2 != 0 {
						s.capture.RerouteInterfaces = name
					}
					if bits&4 != 0 {
						s.previous.Interfaces = name
					}
					if bits&8 != 0 {
						s.previous.Mode, s.previous.Reason = plan.Process, ProcessBinding
					}
					row := -1
					for i, d := range decisions {
						if d.fits(s) {
							row = i
							break
						}
					}
					if row < 0 {
						t.Fatalf("no row for binding %q beside mesh %q, %s, facts %05b", b, m, how, bits)
					}
					used[row]++
					d := decisions[row]
					if d.mode == plan.Off || d.mode == plan.Process {
						continue
					}
					// What is adapted has an interface: the later steps rely on it.
					s.report.Mode, s.facts.VMI = d.mode, &kubevirt.VMI{}
					if findInterface(nil, s); len(s.interfaces) == 0 {
						t.Errorf("row %d adapts binding %q beside mesh %q, facts %05b, without an interface", row, b, m, bits)
					}
				}
			}
		}
	}
	for i, d := range decisions {
		if used[i] == 0 {
			t.Errorf("row %d (%s, %s) never decides", i, d.mode, d.reason)
		}
		if ReasonTexts[d.reason] == "" {
			t.Errorf("row %d has reason %s, which has no text", i, d.reason)
		}
	}
}

// What a user asks for counts where there is something to do; what is off stays off.
func TestWishes(t *testing.T) {
	for _, c := range []struct {
		name    string
		state   state
		mode    plan.Mode
		reason  Reason
		warning string
	}{
		{"auto", with(kubevirt.BindingMasquerade, istio, plan.Auto, ""), plan.Rules, MasqueradeSidecar, ""},
		{"annotation", with(kubevirt.BindingMasquerade, istio, plan.NATProxy, plan.Rules), plan.NATProxy, Requested, ""},
		{"default", with(kubevirt.BindingMasquerade, istio, plan.Auto, plan.Native), plan.Native, ConfiguredDefault, ""},
		{"default off", with(kubevirt.BindingMasquerade, istio, plan.Auto, plan.Off), plan.Off, OptedOut, ""},
		{"default off, asked for", with(kubevirt.BindingMasquerade, istio, plan.Rules, plan.Off), plan.Rules, Requested, ""},
		{"rules for passt", with(kubevirt.BindingPasst, istio, plan.Rules, ""), plan.Process, ProcessBinding, "rules has no effect"},
		{"default rules for passt", with(kubevirt.BindingPasst, istio, plan.Auto, plan.Rules), plan.Process, ProcessBinding, ""},
		{"rules beside Linkerd", with(kubevirt.BindingMasquerade, "linkerd", plan.Rules, ""), plan.Off, MeshUnsupported, ""},
		{"rules in ambient", with(kubevirt.BindingMasquerade, "istio-ambient", plan.Rules, ""), plan.Off, Invalid, ""},
		{"ambient beside a sidecar", with(kubevirt.BindingMasquerade, istio, plan.Ambient, ""), plan.Off, Invalid, ""},
		{"ambient in ambient", with(kubevirt.BindingMasquerade, "istio-ambient", plan.Ambient, ""), plan.Ambient, Requested, ""},
		{"default nat-proxy in ambient", with(kubevirt.BindingMasquerade, "istio-ambient", plan.Auto, plan.NATProxy), plan.Ambient, MasqueradeAmbient, ""},
		{"default off in ambient", with(kubevirt.BindingMasquerade, "istio-ambient", plan.Auto, plan.Off), plan.Off, OptedOut, ""},
		{"default ambient beside a sidecar", with(kubevirt.BindingMasquerade, istio, plan.Auto, plan.Ambient), plan.Rules, MasqueradeSidecar, ""},
		{"rules for bridge in ambient", with(kubevirt.BindingBridge, "istio-ambient", plan.Rules, ""), plan.Off, AmbientUnsupported, ""},
		{"rules without mesh", with(kubevirt.BindingMasquerade, noMesh, plan.Rules, ""), plan.Off, NoMesh, ""},
		{"rules for bridge", with(kubevirt.BindingBridge, istio, plan.Rules, ""), plan.Off, BindingUnsupported, ""},
		{"process for an unknown binding", with(kubevirt.BindingUnknown, istio, plan.Process, ""), plan.Process, Requested, ""},
		{"process for a plugin beside Kuma", with(kubevirt.BindingPlugin, "kuma", plan.Process, ""), plan.Process, Requested, ""},
		{"process for masquerade", with(kubevirt.BindingMasquerade, istio, plan.Process, ""), plan.Process, Requested, "masquerade binding"},
		{"process without mesh", with(kubevirt.BindingPasst, noMesh, plan.Process, ""), plan.Off, NoMesh, ""},
		{"default process for SR-IOV", with(kubevirt.BindingSRIOV, istio, plan.Auto, plan.Process), plan.Off, NoVirtualInterface, ""},
		{"rules beside TPROXY", tproxied(plan.Auto, ""), plan.Rules, MasqueradeSidecar, ""},
		{"tproxy beside TPROXY", tproxied(plan.TProxy, ""), plan.TProxy, Requested, ""},
		{"native beside TPROXY", tproxied(plan.Native, ""), plan.Off, Invalid, ""},
		{"default native beside TPROXY", tproxied(plan.Auto, plan.Native), plan.Rules, MasqueradeSidecar, ""},
		{"nat-proxy before Kubernetes 1.29", old(plan.NATProxy, "", nil), plan.Off, Invalid, ""},
		{"tproxy before Kubernetes 1.29", old(plan.TProxy, "", nil), plan.Off, Invalid, ""},
		{"rules before Kubernetes 1.29", old(plan.Rules, "", nil), plan.Rules, Requested, ""},
		{"default tproxy before Kubernetes 1.29", old(plan.Auto, plan.TProxy, nil), plan.Rules, MasqueradeSidecar, "1.29 or later in the cluster; mode rules in its place"},
		{"nat-proxy beside a native sidecar", old(plan.NATProxy, "", new(corev1.ContainerRestartPolicyAlways)), plan.NATProxy, Requested, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := c.state
			mode, reason := plan.Off, chooseMode(nil, &s)
			if reason == "" {
				mode, reason = s.report.Mode, s.report.Reason
			}
			if mode != c.mode || reason != c.reason {
				t.Errorf("mode %s for %s, want %s for %s", mode, reason, c.mode, c.reason)
			}
			if got := strings.Join(s.report.Warnings, "\n"); (got == "") != (c.warning == "") || !strings.Contains(got, c.warning) {
				t.Errorf("warnings %q, want %q", got, c.warning)
			}
		})
	}
}

// tproxied is a masquerade VM beside an Istio that intercepts by TPROXY.
func tproxied(asked, configured plan.Mode) state {
	s := with(kubevirt.BindingMasquerade, istio, asked, configured)
	s.capture.Interception = mesh.InterceptionTPROXY
	return s
}

// old is a masquerade VM in a cluster before Kubernetes 1.29, in which the mesh's own sidecar may be native,
// where the feature gate is set.
func old(asked, configured plan.Mode, sidecar *corev1.ContainerRestartPolicy) state {
	s := with(kubevirt.BindingMasquerade, istio, asked, configured)
	s.facts.NoNativeSidecars = true
	s.before = &corev1.Pod{Spec: corev1.PodSpec{InitContainers: []corev1.Container{{Name: "istio-init"}, {Name: "istio-proxy", RestartPolicy: sidecar}}}}
	return s
}

func with(b kubevirt.Binding, meshName string, asked, configured plan.Mode) state {
	return state{
		facts: Facts{VMI: &kubevirt.VMI{Binding: b}}, report: Report{Mesh: meshName},
		settings: annotations.Settings{Mode: asked}, cfg: Config{DefaultMode: configured},
	}
}

// docs/auto.md is made from the table by `make golden`.
func TestDecisionsAreDocumented(t *testing.T) {
	var b strings.Builder
	b.WriteString(`# Mode auto

What the webhook chooses if nobody asks for a mode. This page is made from the code (` + "`make golden`" + `); [reasons](reasons.md)
has what each reason means.

## In short

A VM whose VirtualMachineInstance is known, beside a mesh with default settings:

| binding | ` + strings.Join(display(allMeshes, "no mesh"), " | ") + " |\n|---|" + strings.Repeat("---|", len(allMeshes)) + "\n")
	for _, binding := range allBindings {
		if binding == kubevirt.BindingUnknown {
			continue
		}
		fmt.Fprintf(&b, "| %s |", binding)
		for _, m := range allMeshes {
			s := with(binding, m, plan.Auto, "")
			s.binding = binding
			d := decide(&s)
			fmt.Fprintf(&b, " `%s`, %s |", d.mode, d.reason)
		}
		b.WriteString("\n")
	}
	b.WriteString(`
## The whole table

Read from the top; the first row that fits decides. An empty field fits all. A binding is unknown if the VirtualMachineInstance is, and in
opted-in pods; "none" is a VM without an interface on the pod network, "plugin" a network binding plugin but passt and slirp.

| binding | mesh | if | mode | reason |
|---|---|---|---|---|
`)
	for _, d := range decisions {
		var names []string
		for _, x := range d.bindings {
			names = append(names, string(x))
		}
		condition := ""
		if d.when != nil {
			condition = d.when.text
		}
		fmt.Fprintf(&b, "| %s | %s | %s | `%s` | %s |\n", strings.Join(display(names, "unknown"), ", "), strings.Join(display(d.meshes, "none"), ", "), condition, d.mode, d.reason)
	}
	b.WriteString(`
## What somebody asks for

The annotation ` + "`meshvirt.io/mode`" + `, else the webhook's default mode, replaces a mode of the table where that is neither ` + "`off` nor `process`" + `: nobody
can ask for rules where there is nothing to write them for. The annotation may ask for ` + "`process`" + ` beside every mesh that redirects the pod's
traffic: the user may know of a binding that the table does not. Where Istio intercepts by TPROXY, ` + "`native`" + ` cannot work: the annotation is
refused, a default of it has no effect.
`)
	compareDoc(t, "../../docs/auto.md", b.String())
}

// display gives the names with a word for the empty one.
func display(names []string, empty string) []string {
	var out []string
	for _, n := range names {
		if n == "" {
			n = empty
		}
		out = append(out, n)
	}
	return out
}

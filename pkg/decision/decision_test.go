package decision

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/meshvirt/meshvirt/pkg/kubevirt"
	"github.com/meshvirt/meshvirt/pkg/mesh"
	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/test/golden"
)

var (
	allBindings = []kubevirt.Binding{kubevirt.BindingMasquerade, kubevirt.BindingBridge, kubevirt.BindingPasst, kubevirt.BindingSlirp, kubevirt.BindingSRIOV, kubevirt.BindingPlugin, kubevirt.BindingNone, kubevirt.BindingUnknown}
	allMeshes   = []string{noMesh, istio, "istio-ambient", "linkerd", "kuma", "consul"}
)

// Every binding beside every mesh, whatever else is known, has a row, and every row is needed.
func TestTable(t *testing.T) {
	used := map[int]int{}
	for _, b := range allBindings {
		for _, m := range allMeshes {
			for _, how := range []mesh.Interception{mesh.InterceptionRedirect, mesh.InterceptionTPROXY, mesh.InterceptionNone} {
				for bits := range 32 {
					c := Case{
						Binding: b, Mesh: m, Interception: how,
						Given: bits&1 != 0, Rerouted: bits&2 != 0, Found: bits&4 != 0, WasProcess: bits&8 != 0, CannotExclude: bits&16 != 0,
					}
					i := slices.IndexFunc(table, func(r row) bool { return r.fits(c) })
					if i < 0 {
						t.Fatalf("no row for %+v", c)
					}
					used[i]++
					// What is adapted has an interface: package mutate relies on it, and finds it by one of these.
					if m := table[i].mode; m != plan.Off && m != plan.Process && b != kubevirt.BindingMasquerade && !c.Given && !c.Rerouted && !c.Found {
						t.Errorf("row %d adapts %+v without an interface", i, c)
					}
				}
			}
		}
	}
	for i, r := range table {
		if used[i] == 0 {
			t.Errorf("row %d (%s, %s) never decides", i, r.mode, r.reason)
		}
		if ReasonTexts[r.reason] == "" {
			t.Errorf("row %d has reason %s, which has no text", i, r.reason)
		}
	}
}

// What a user asks for counts where there is something to do; what is off stays off.
func TestWishes(t *testing.T) {
	for _, c := range []struct {
		name    string
		of      Case
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
		{"nat-proxy before Kubernetes 1.29", old(plan.NATProxy, ""), plan.Off, Invalid, ""},
		{"tproxy before Kubernetes 1.29", old(plan.TProxy, ""), plan.Off, Invalid, ""},
		{"rules before Kubernetes 1.29", old(plan.Rules, ""), plan.Rules, Requested, ""},
		{"default tproxy before Kubernetes 1.29", old(plan.Auto, plan.TProxy), plan.Rules, MasqueradeSidecar, "1.29 or later in the cluster; mode rules in its place"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := Choose(c.of)
			if got.Mode != c.mode || got.Reason != c.reason {
				t.Errorf("mode %s for %s, want %s for %s", got.Mode, got.Reason, c.mode, c.reason)
			}
			if refused := err != nil && strings.HasPrefix(err.Error(), "metadata.annotations[meshvirt.io/mode]: Invalid value: "); refused != (c.reason == Invalid) {
				t.Errorf("error %v, and the reason is %s", err, c.reason)
			}
			if got := strings.Join(got.Warnings, "\n"); (got == "") != (c.warning == "") || !strings.Contains(got, c.warning) {
				t.Errorf("warnings %q, want %q", got, c.warning)
			}
		})
	}
}

// tproxied is a masquerade VM beside an Istio that intercepts by TPROXY.
func tproxied(asked, configured plan.Mode) Case {
	c := with(kubevirt.BindingMasquerade, istio, asked, configured)
	c.Interception = mesh.InterceptionTPROXY
	return c
}

// old is a masquerade VM in a cluster before Kubernetes 1.29.
func old(asked, configured plan.Mode) Case {
	c := with(kubevirt.BindingMasquerade, istio, asked, configured)
	c.NoNativeSidecars = true
	return c
}

func with(b kubevirt.Binding, meshName string, asked, configured plan.Mode) Case {
	return Case{Binding: b, Mesh: meshName, Interception: mesh.InterceptionRedirect, Asked: asked, Default: configured}
}

// docs/auto.md is made from the table by `make golden`.
func TestTableIsDocumented(t *testing.T) {
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
			r := auto(with(binding, m, plan.Auto, ""))
			fmt.Fprintf(&b, " `%s`, %s |", r.mode, r.reason)
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
	for _, r := range table {
		var names []string
		for _, x := range r.bindings {
			names = append(names, string(x))
		}
		condition := ""
		if r.when != nil {
			condition = r.when.text
		}
		fmt.Fprintf(&b, "| %s | %s | %s | `%s` | %s |\n", strings.Join(display(names, "unknown"), ", "), strings.Join(display(r.meshes, "none"), ", "), condition, r.mode, r.reason)
	}
	b.WriteString(`
## What somebody asks for

The annotation ` + "`meshvirt.io/mode`" + `, else the webhook's default mode, replaces a mode of the table where that is neither ` + "`off` nor `process`" + `: nobody
can ask for rules where there is nothing to write them for. The annotation may ask for ` + "`process`" + ` beside every mesh that redirects the pod's
traffic: the user may know of a binding that the table does not. Where Istio intercepts by TPROXY, ` + "`native`" + ` cannot work: the annotation is
refused, a default of it has no effect.
`)
	golden.File(t, "../../docs/auto.md", b.String())
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

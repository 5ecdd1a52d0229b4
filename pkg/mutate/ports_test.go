package mutate

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/meshvirt/meshvirt/pkg/annotations"
	"github.com/meshvirt/meshvirt/pkg/kubevirt"
	"github.com/meshvirt/meshvirt/pkg/plan"
)

// TestPortsMoveAside: our containers give way to whoever else has their usual ports.
func TestPortsMoveAside(t *testing.T) {
	guest := func(ranges ...plan.PortRange) Facts {
		return Facts{VMI: &kubevirt.VMI{Binding: kubevirt.BindingMasquerade, IPv4: netip.MustParseAddr("10.0.2.2"), TCP: ranges}}
	}
	for name, c := range map[string]struct {
		mode   plan.Mode
		facts  Facts
		change func(*corev1.Pod)
		want   string // outbound, inbound, status, DNS, watch
	}{
		"nobody has them":        {plan.TProxy, Facts{}, nil, "15101 15106 15120 15153 15121"},
		"the mesh's outbound":    {plan.NATProxy, Facts{}, func(p *corev1.Pod) { setArg(p, "-p", "15101") }, "15102 15106 15120 15153 0"},
		"the mesh's inbound":     {plan.NATProxy, Facts{}, func(p *corev1.Pod) { setArg(p, "-z", "15106") }, "15101 15107 15120 15153 0"},
		"the mesh's own":         {plan.TProxy, Facts{}, func(p *corev1.Pod) { setArg(p, "-d", "15090,15021,15120") }, "15101 15106 15121 15153 15122"},
		"the guest's":            {plan.TProxy, guest(plan.Port(80), plan.PortRange{First: 15100, Last: 15150}), nil, "15151 15152 15153 15154 15157"},
		"the guest's last":       {plan.NATProxy, guest(plan.PortRange{First: 15154, Last: 15154}), nil, "15101 15106 15120 15155 0"},
		"another container's":    {plan.NATProxy, Facts{}, func(p *corev1.Pod) { listen(p, 15106) }, "15101 15107 15120 15153 0"},
		"all but the last":       {plan.NATProxy, Facts{}, func(p *corev1.Pod) { listen(p, manyPorts()...) }, "65533 65534 65535 15153 0"},
		"excluded from the mesh": {plan.NATProxy, Facts{}, func(p *corev1.Pod) { p.Annotations[annotations.ExcludeInboundPorts] = "15120" }, "15101 15106 15121 15153 0"},
		"the guest has all":      {plan.NATProxy, guest(plan.PortRange{First: 1024, Last: 65535}), nil, "15101 15106 15120 15153 0"},
	} {
		t.Run(name, func(t *testing.T) {
			pod := recorded(t)
			istio := istioContainer(pod)
			istio.Env = append(istio.Env, corev1.EnvVar{Name: "ISTIO_META_DNS_CAPTURE", Value: "true"})
			if c.change != nil {
				c.change(pod)
			}
			pod.Annotations[annotations.Mode] = string(c.mode)
			out, report, errs := Apply(pod, c.facts, testConfig)
			if len(errs) > 0 || report.Plan == nil {
				t.Fatalf("errors %v, report\n%s", errs, report)
			}
			x := report.Plan.Proxy
			if got := fmt.Sprint(x.OutboundPort, x.InboundPort, x.StatusPort, x.DNSPort, report.Plan.WatchPort); got != c.want {
				t.Errorf("ports %s, want %s", got, c.want)
			}
			if _, again, _ := Apply(out, c.facts, testConfig); len(again.Changes) > 0 {
				t.Errorf("a second admission changes %q", again.Changes)
			}
		})
	}
}

// listen gives the pod a container that listens on the port.
func listen(p *corev1.Pod, list ...int32) {
	c := corev1.Container{Name: "console"}
	for _, port := range list {
		c.Ports = append(c.Ports, corev1.ContainerPort{ContainerPort: port})
	}
	p.Spec.Containers = append(p.Spec.Containers, c)
}

// manyPorts are all but the last three, in the order in which a search from below would take longest.
func manyPorts() (all []int32) {
	for p := int32(65532); p > 0; p-- {
		all = append(all, p)
	}
	return all
}

// TestListedPorts: what a VMI lists and cannot get is said.
func TestListedPorts(t *testing.T) {
	for name, c := range map[string]struct {
		mode plan.Mode
		tcp  []plan.PortRange
		want string
	}{
		"none listed":     {plan.Rules, nil, ""},
		"none of them":    {plan.Rules, []plan.PortRange{plan.Port(80), plan.Port(15101)}, ""},
		"one of Istio's":  {plan.Rules, []plan.PortRange{plan.Port(80), plan.Port(15020)}, "TCP 15020,"},
		"a range":         {plan.Rules, []plan.PortRange{{First: 15000, Last: 15100}}, "TCP 15001,15006,15008,15020,15021,15090,"},
		"in mode native":  {plan.Native, []plan.PortRange{plan.Port(15021)}, "TCP 15021,"},
		"all, and no way": {plan.NATProxy, []plan.PortRange{{First: 15091, Last: 65535}}, "TCP 15101,15106,15120,"},
	} {
		t.Run(name, func(t *testing.T) {
			pod := recorded(t)
			pod.Annotations[annotations.Mode] = string(c.mode)
			_, report, errs := Apply(pod, Facts{VMI: &kubevirt.VMI{Binding: kubevirt.BindingMasquerade, TCP: c.tcp}}, testConfig)
			if len(errs) > 0 {
				t.Fatal(errs)
			}
			var got string
			for _, w := range report.Warnings {
				if strings.HasPrefix(w, "the VMI lists") {
					got += w
				}
			}
			if (got != "") != (c.want != "") || !strings.Contains(got, c.want) {
				t.Errorf("warning %q, want %q in it", got, c.want)
			}
		})
	}
}

package mutate

import (
	"fmt"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/meshvirt/meshvirt/pkg/annotations"
	"github.com/meshvirt/meshvirt/pkg/decision"
	"github.com/meshvirt/meshvirt/pkg/kubevirt"
	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/record"
	"github.com/meshvirt/meshvirt/pkg/templates"
)

// What a pod was decided by, as meshvirt.io/status says.
const (
	factsVMI = "vmi" // the VirtualMachineInstance, now or in an earlier admission
	factsPod = "pod"
)

// recall gives what an earlier admission of the same pod knew of the VMI, as far as its plan and status
// tell: an admission that knows less must not undo what that one did. Where the pod has an annotation
// itself, that counts. Nil if there was none, or if it was of another release.
func recall(pod *corev1.Pod, was record.Status) *kubevirt.VMI {
	if was.Facts != factsVMI {
		return nil
	}
	vmi := &kubevirt.VMI{Annotations: map[string]string{}}
	if was.Reason == decision.Requested {
		vmi.Annotations[annotations.Mode] = string(was.Mode)
	}
	if was.Mode == plan.Process {
		if was.Reason == decision.ProcessBinding {
			vmi.Binding = kubevirt.BindingPasst // or slirp, which means the same
		}
		return vmi
	}
	p, ok := record.PlanOf(pod)
	if !ok {
		return nil
	}
	vmi.Binding, vmi.TCP, vmi.UDP = kubevirt.BindingMasquerade, p.Guest.TCP, p.Guest.UDP
	set := func(key string, list []string) {
		if len(list) > 0 {
			vmi.Annotations[key] = strings.Join(list, ",")
		}
	}
	if !p.Assumed.Interfaces { // else they are assumed again
		vmi.PodInterface = p.PodInterface
		set(annotations.Interfaces, p.Interfaces)
	}
	if p.Mode != plan.TProxy { // which is watched whatever anybody says
		vmi.Annotations[annotations.Watch] = strconv.FormatBool(p.WatchPort != 0)
	}
	guest := words(p.Guest.IPv4, p.Guest.IPv6)
	if !p.Guest.IPv4.IsValid() {
		guest = guest[1:]
	} else if !p.Guest.IPv6.IsValid() {
		guest = guest[:1]
	}
	set(annotations.GuestAddresses, guest)
	// The mesh's own are among these, which changes nothing: the pod still names them, and each counts once.
	set(annotations.ExcludeOutboundCIDRs, words(p.Outbound.ExcludeCIDRs...))
	set(annotations.ExcludeOutboundPorts, words(p.Outbound.ExcludePorts...))
	set(annotations.ExcludeInboundPorts, words(p.Inbound.ExcludePorts...))
	if set(annotations.IncludeOutboundCIDRs, words(p.Outbound.IncludeCIDRs...)); p.Outbound.All {
		vmi.Annotations[annotations.IncludeOutboundCIDRs] = "*"
	}
	return vmi
}

func words[T any](list ...T) []string {
	var out []string
	for _, e := range list {
		out = append(out, fmt.Sprint(e))
	}
	return out
}

// sayFacts warns of what is around an adapted pod.
func sayFacts(pod *corev1.Pod, s *state) decision.Reason {
	if s.facts.VMI == nil && s.facts.Unknown != "" && kubevirt.IsLauncher(pod.Labels) {
		s.warn("the VirtualMachineInstance is not known (%s): decided by the pod alone%s", s.facts.Unknown, assumption(s.plan))
	}
	if level := RefusingLevel(s.facts.NamespaceLabels); level != "" && templates.Index(pod.Spec.InitContainers, templates.RulesName) >= 0 {
		where := "the namespace"
		if pod.Namespace != "" {
			where = "namespace " + pod.Namespace
		}
		s.warn("%s enforces Pod Security level %s, which refuses capability NET_ADMIN of init container %s: label it %s=privileged, or leave the VM out by %s: off",
			where, level, templates.RulesName, PodSecurity, annotations.Mode)
	}
	return ""
}

// knownBy is what the pod was decided by.
func (s *state) knownBy() string {
	if s.facts.VMI != nil {
		return factsVMI
	}
	return factsPod
}

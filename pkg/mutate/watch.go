package mutate

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/meshvirt/meshvirt/pkg/annotations"
	"github.com/meshvirt/meshvirt/pkg/kubevirt"
	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/templates"
)

// Signs that the pod's own network is not what KubeVirt takes for the default. The interface that KubeVirt then
// names the guest's bridge after is known only once the pod runs.
const (
	multusDefaultNetwork = "v1.multus-cni.io/default-network"         // annotation of the pod
	ovnPrimaryNetwork    = "k8s.ovn.org/primary-user-defined-network" // label of the namespace
)

// assumed says what of the plan are KubeVirt's defaults. Its annotations name the bridge k6t-eth0 whatever the
// pod's interface, so they tell nothing; any other name somebody has chosen.
func assumed(pod *corev1.Pod, s *state) plan.Assumed {
	vmi := s.facts.VMI
	return plan.Assumed{
		Interfaces: kubevirt.IsLauncher(pod.Labels) && len(s.settings.Interfaces) == 0 && (vmi == nil || vmi.PodInterface == "") &&
			slices.Equal(s.interfaces, []string{kubevirt.Bridge("")}),
		Guest: vmi == nil && !s.settings.GuestIPv4.IsValid() && !s.settings.GuestIPv6.IsValid(),
	}
}

// unusual names the sign that something else than the assumed will be in the pod, or "".
func unusual(pod *corev1.Pod, s *state) string {
	if _, ok := pod.Annotations[multusDefaultNetwork]; ok {
		return "annotation " + multusDefaultNetwork
	}
	if _, ok := s.facts.NamespaceLabels[ovnPrimaryNetwork]; ok {
		return "label " + ovnPrimaryNetwork + " of the namespace"
	}
	return ""
}

// watched decides whether the container that writes the rules stays, as a native sidecar, and keeps them right.
// Ordinary VMs do without: what is assumed of them is what KubeVirt does.
func watched(pod *corev1.Pod, s *state, p *plan.Plan) bool {
	wish := s.settings.Watch
	if p.Mode == plan.TProxy {
		if wish == annotations.WatchFalse {
			s.warn("annotation %s: false has no effect in mode %s, whose rules must be written again when the interface appears", annotations.Watch, p.Mode)
		}
		return true
	}
	if wish == annotations.WatchTrue && noNativeSidecars(s) {
		s.invalid(field.Invalid(annotations.Path.Key(annotations.Watch), string(wish), "want auto or false: what watches is a native sidecar, for which the cluster needs Kubernetes 1.29 or later"))
		return false
	}
	sign := unusual(pod, s)
	if sign == "" || p.Assumed == (plan.Assumed{}) {
		return wish == annotations.WatchTrue
	}
	if noNativeSidecars(s) {
		s.warn("%s: the guest may be behind another interface than %s, and what would watch for it (annotation %s) needs Kubernetes 1.29 or later: set annotation %s",
			sign, strings.Join(p.Interfaces, ","), annotations.Watch, annotations.Interfaces)
		return false
	}
	if wish == annotations.WatchFalse {
		s.warn("%s: the guest may be behind another interface than %s, and nothing watches for it: remove annotation %s: false, or set %s",
			sign, strings.Join(p.Interfaces, ","), annotations.Watch, annotations.Interfaces)
		return false
	}
	s.warn("%s: the guest may be behind another interface than %s: init container %s stays and looks for it (annotation %s)",
		sign, strings.Join(p.Interfaces, ","), templates.RulesName, annotations.Watch)
	return true
}

// assumption tells which addresses of the guest are KubeVirt's defaults, or "".
func assumption(p plan.Plan) string {
	if !p.Assumed.Guest {
		return ""
	}
	return fmt.Sprintf(", with the guest at KubeVirt's defaults %s and %s; if vmNetworkCIDR is set, set annotation %s too, or %s: \"true\"",
		p.Guest.IPv4, p.Guest.IPv6, annotations.GuestAddresses, annotations.Watch)
}

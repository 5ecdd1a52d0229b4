package inventory

import (
	"cmp"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/meshvirt/meshvirt/pkg/kubevirt"
)

// OwnerOf gives the reference to the VirtualMachineInstance that controls the pod, of any version; nil if none does.
func OwnerOf(pod *corev1.Pod) *metav1.OwnerReference {
	owner := metav1.GetControllerOf(pod)
	if owner == nil || !kubevirt.IsVMI(owner.APIVersion, owner.Kind) {
		return nil
	}
	return owner
}

// Launchers gives the pods of the VirtualMachineInstance that have not ended: those that are not about to end first,
// and of these the newest first. While a virtual machine migrates, that is the target.
func (c *Cluster) Launchers(uid types.UID) (all []*corev1.Pod) {
	for i := range c.Pods {
		pod := &c.Pods[i]
		if owner := OwnerOf(pod); owner != nil && owner.UID == uid && pod.Status.Phase != corev1.PodSucceeded && pod.Status.Phase != corev1.PodFailed {
			all = append(all, pod)
		}
	}
	ending := func(pod *corev1.Pod) int {
		if pod.DeletionTimestamp != nil {
			return 1
		}
		return 0
	}
	slices.SortFunc(all, func(a, b *corev1.Pod) int {
		return cmp.Or(cmp.Compare(ending(a), ending(b)), b.CreationTimestamp.Compare(a.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
	})
	return all
}

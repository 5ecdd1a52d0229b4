package kubevirt

import (
	"errors"
	"fmt"
	"strings"
)

// The group and the kind of VirtualMachineInstances.
const (
	Group   = "kubevirt.io"
	VMIKind = "VirtualMachineInstance"
)

// IsVMI reports whether an owner reference of a pod is to a VirtualMachineInstance, of any version.
func IsVMI(apiVersion, kind string) bool {
	return kind == VMIKind && strings.HasPrefix(apiVersion, Group+"/")
}

// Why a pod's VirtualMachineInstance is not known, in words for users.

// ErrNotServed is for a cluster without KubeVirt.
var ErrNotServed = errors.New("the API server does not know virtualmachineinstances.kubevirt.io, is KubeVirt installed?")

// NotFound is for one that is not there.
func NotFound(namespace, name string) error { return fmt.Errorf("there is no %s/%s", namespace, name) }

// OtherUID is for one that has taken the place of the pod's owner.
func OtherUID(namespace, name, uid, owner string) error {
	return fmt.Errorf("%s/%s has uid %s, and the pod's owner %s", namespace, name, uid, owner)
}

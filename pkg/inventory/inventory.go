// Package inventory is what was read of a cluster, or of manifests, by whoever judges it. It does no I/O.
package inventory

import (
	"time"

	admissionregistration "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/version"

	"github.com/meshvirt/meshvirt/pkg/kubevirt"
)

// WebhookName is that of the chart's webhook; whatever configuration has it is MeshVirt's.
const WebhookName = "inject.meshvirt.io"

// Cluster is what was read of a cluster, or of manifests.
type Cluster struct {
	// Now is the time by which certificates and starts of containers are judged.
	Now time.Time
	// Server is the API server's version; nil if it is not known.
	Server *version.Info
	// Unknown are the resources that were not read, by name as in Resources, each with the reason. An empty one
	// means that nobody asked; any other is a finding. Checks that need such a resource are left out.
	Unknown map[string]string
	// NoKubeVirt says that the API server serves no virtual machines.
	NoKubeVirt bool

	// Configurations are those of MeshVirt and of all others.
	Configurations []admissionregistration.MutatingWebhookConfiguration
	// Services, EndpointSlices and Deployments are those that MeshVirt's configurations lead to.
	Services       []corev1.Service
	EndpointSlices []discovery.EndpointSlice
	Deployments    []appsv1.Deployment
	Namespaces     []corev1.Namespace
	// Machines are VirtualMachines, Instances VirtualMachineInstances.
	Machines, Instances []Machine
	// Pods are virt-launcher pods and those that opted in.
	Pods []corev1.Pod
	// Tried is nil if nobody asked for it.
	Tried *Trial
}

// A Trial is what became of a pod that the API server was asked to create in a dry run.
type Trial struct {
	// Namespace is where; empty if there was none to try in.
	Namespace string
	// Err is why the API server did not take the pod.
	Err error
	// Adapted says that the pod came back with MeshVirt's status.
	Adapted bool
}

// Object names what a finding is about. Name is empty if it is about all of a kind.
type Object struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name,omitempty"`
}

// String is the object for people, such as "Pod vms/virt-launcher-web".
func (o Object) String() string {
	s := o.Kind
	if o.Name != "" {
		s += " "
		if o.Namespace != "" {
			s += o.Namespace + "/"
		}
		s += o.Name
	}
	return s
}

// A Machine is a VirtualMachine or a VirtualMachineInstance.
type Machine struct {
	Object
	UID types.UID
	// Owner is the VirtualMachine that a VirtualMachineInstance belongs to; empty for others.
	Owner string
	// Annotations and Labels are those that reach the pod: of a VirtualMachine, its template's.
	Annotations, Labels map[string]string
	// Own are the annotations and labels of a VirtualMachine itself, which go nowhere.
	Own map[string]string
	// VMI is what admission will know of it; nil if it cannot be read, for the reason Unreadable.
	VMI        *kubevirt.VMI
	Unreadable string
	// Refusal is what KubeVirt says of a pod that it could not create, or empty.
	Refusal string
}

// The names of the resources.
const (
	Configurations = "mutatingwebhookconfigurations"
	Services       = "services"
	EndpointSlices = "endpointslices"
	Deployments    = "deployments"
	Namespaces     = "namespaces"
	Machines       = "virtualmachines"
	Instances      = "virtualmachineinstances"
	Pods           = "pods"
)

// A Resource is one that checks look at.
type Resource struct {
	schema.GroupVersionResource
	Kind string
	// Why says what it is read for.
	Why string
}

// Resources lists all, in the order in which they are to be read: what the configurations name comes after them.
var Resources = []Resource{
	{resource("admissionregistration.k8s.io/v1", Configurations), "MutatingWebhookConfiguration", "MeshVirt's, and the order among others"},
	{resource("v1", Services), "Service", "the webhook's"},
	{resource("discovery.k8s.io/v1", EndpointSlices), "EndpointSlice", "which of its pods are ready"},
	{resource("apps/v1", Deployments), "Deployment", "releases, replicas and default mode"},
	{resource("v1", Namespaces), "Namespace", "labels"},
	{resource("kubevirt.io/v1", Machines), "VirtualMachine", "annotations"},
	{resource("kubevirt.io/v1", Instances), "VirtualMachineInstance", "annotations, and what KubeVirt says"},
	{resource("v1", Pods), "Pod", "virt-launcher pods"},
}

func resource(groupVersion, name string) schema.GroupVersionResource {
	gv, err := schema.ParseGroupVersion(groupVersion)
	if err != nil { // of a constant: cannot happen
		panic(err)
	}
	return gv.WithResource(name)
}

package check

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/meshvirt/meshvirt/pkg/mutate"
)

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
	VMI        *mutate.VMI
	Unreadable string
	// Refusal is what KubeVirt says of a pod that it could not create, or empty.
	Refusal string
}

// Add adds an object, or each object of a list, in JSON. One of a kind that is in no Resource is left out.
func (c *Cluster) Add(raw []byte) error {
	var meta struct {
		metav1.TypeMeta
		Items []json.RawMessage `json:"items"`
	}
	if err := json.Unmarshal(raw, &meta); err != nil {
		return fmt.Errorf("want a Kubernetes object: %w", err)
	}
	switch meta.Kind {
	case "":
		return errors.New("kind is missing, want a Kubernetes object")
	case "MutatingWebhookConfiguration":
		return add(&c.Configurations, raw, as)
	case "Service":
		return add(&c.Services, raw, as)
	case "EndpointSlice":
		return add(&c.EndpointSlices, raw, as)
	case "Deployment":
		return add(&c.Deployments, raw, as)
	case "Namespace":
		return add(&c.Namespaces, raw, as)
	case "Pod":
		return add(&c.Pods, raw, as)
	case "VirtualMachine":
		return add(&c.Machines, raw, readMachine)
	case "VirtualMachineInstance":
		return add(&c.Instances, raw, readMachine)
	}
	if strings.HasSuffix(meta.Kind, "List") {
		for i, item := range meta.Items {
			if err := c.Add(item); err != nil {
				return fmt.Errorf("items[%d]: %w", i, err)
			}
		}
	}
	return nil
}

func add[T any](list *[]T, raw []byte, read func([]byte) (T, error)) error {
	object, err := read(raw)
	if err == nil {
		*list = append(*list, object)
	}
	return err
}

func as[T any](raw []byte) (object T, err error) {
	return object, json.Unmarshal(raw, &object)
}

// readMachine reads a VirtualMachine or a VirtualMachineInstance.
func readMachine(raw []byte) (Machine, error) {
	var in struct {
		Kind     string            `json:"kind"`
		Metadata metav1.ObjectMeta `json:"metadata"`
		Spec     struct {
			Template struct {
				Metadata metav1.ObjectMeta `json:"metadata"`
				Spec     json.RawMessage   `json:"spec"`
			} `json:"template"`
		} `json:"spec"`
		Status struct {
			Conditions []struct {
				Type    string                 `json:"type"`
				Status  corev1.ConditionStatus `json:"status"`
				Message string                 `json:"message"`
			} `json:"conditions"`
		} `json:"status"`
	}
	if err := json.Unmarshal(raw, &in); err != nil {
		return Machine{}, fmt.Errorf("read virtual machine: %w", err)
	}
	m := Machine{Object: Object{in.Kind, in.Metadata.Namespace, in.Metadata.Name}, UID: in.Metadata.UID, Annotations: in.Metadata.Annotations, Labels: in.Metadata.Labels}
	if owner := metav1.GetControllerOf(&in.Metadata); owner != nil && owner.Kind == "VirtualMachine" {
		m.Owner = owner.Name
	}
	vmi := raw
	if in.Kind == "VirtualMachine" {
		template := in.Spec.Template
		m.Own = map[string]string{}
		maps.Copy(m.Own, m.Annotations)
		maps.Copy(m.Own, m.Labels)
		m.Annotations, m.Labels = template.Metadata.Annotations, template.Metadata.Labels
		// As KubeVirt makes it.
		var err error
		if vmi, err = json.Marshal(map[string]any{"kind": "VirtualMachineInstance", "metadata": template.Metadata, "spec": template.Spec}); err != nil {
			return Machine{}, fmt.Errorf("read virtual machine: %w", err)
		}
	} else {
		for _, c := range in.Status.Conditions {
			if c.Type == "Synchronized" && c.Status == corev1.ConditionFalse {
				m.Refusal = c.Message
			}
		}
	}
	var err error
	if m.VMI, err = mutate.ParseVMI(vmi); err != nil {
		m.Unreadable = err.Error()
	}
	return m, nil
}

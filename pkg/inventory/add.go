package inventory

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshvirt/meshvirt/pkg/kubevirt"
)

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
	if m.VMI, err = kubevirt.ParseVMI(vmi); err != nil {
		m.Unreadable = err.Error()
	}
	return m, nil
}

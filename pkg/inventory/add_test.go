package inventory

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"github.com/meshvirt/meshvirt/pkg/kubevirt"
)

const list = `
kind: List
items:
- kind: VirtualMachine
  metadata: {name: web, namespace: vms, annotations: {own: a}, labels: {mine: b}}
  spec:
    template:
      metadata: {annotations: {meshvirt.io/mode: rules}, labels: {app: web}}
      spec:
        domain: {devices: {interfaces: [{name: default, masquerade: {}}]}}
        networks: [{name: default, pod: {}}]
- kind: VirtualMachineInstance
  metadata:
    name: web
    namespace: vms
    uid: "1"
    annotations: {meshvirt.io/mode: "off"}
    ownerReferences: [{kind: VirtualMachine, name: web, controller: true}]
  spec:
    domain: {devices: {interfaces: [{name: default, passtBinding: {}}]}}
    networks: [{name: default, pod: {vmNetworkCIDR: ten}}]
  status:
    conditions: [{type: Ready, status: "False", message: not yet}, {type: Synchronized, status: "False", message: refused}]
- kind: ConfigMap
- kind: PodList
  items: [{kind: Pod, metadata: {name: one}}, {kind: Pod, metadata: {name: two}}]
`

func addYAML(c *Cluster, text string) error {
	b, err := yaml.YAMLToJSON([]byte(text))
	if err != nil {
		return err
	}
	return c.Add(b)
}

func TestAdd(t *testing.T) {
	c := &Cluster{}
	if err := addYAML(c, list); err != nil {
		t.Fatal(err)
	}
	if len(c.Machines) != 1 || len(c.Instances) != 1 || len(c.Pods) != 2 || c.Pods[1].Name != "two" {
		t.Fatalf("%d VirtualMachines, %d VMIs, %d pods", len(c.Machines), len(c.Instances), len(c.Pods))
	}
	vm, vmi := c.Machines[0], c.Instances[0]
	if vm.VMI == nil || vm.VMI.Binding != kubevirt.BindingMasquerade || vm.VMI.Annotations["meshvirt.io/mode"] != "rules" {
		t.Errorf("the VMI that the VirtualMachine will have is %+v (%s)", vm.VMI, vm.Unreadable)
	}
	if vmi.VMI != nil || !strings.Contains(vmi.Unreadable, "vmNetworkCIDR") {
		t.Errorf("%+v is read of a VMI with a bad network (%s)", vmi.VMI, vmi.Unreadable)
	}
	vm.VMI, vmi.Unreadable = nil, ""
	want := Machine{
		Object: Object{"VirtualMachine", "vms", "web"}, Own: map[string]string{"own": "a", "mine": "b"},
		Annotations: map[string]string{"meshvirt.io/mode": "rules"}, Labels: map[string]string{"app": "web"},
	}
	if diff := cmp.Diff(want, vm); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	want = Machine{Object: Object{"VirtualMachineInstance", "vms", "web"}, UID: "1", Owner: "web", Annotations: map[string]string{"meshvirt.io/mode": "off"}, Refusal: "refused"}
	if diff := cmp.Diff(want, vmi); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestAddErrors(t *testing.T) {
	for text, want := range map[string]string{
		"[]":                                 "want a Kubernetes object",
		"{}":                                 "kind is missing",
		"{kind: Pod, spec: text}":            "spec",
		"{kind: VirtualMachine, spec: text}": "read virtual machine",
		"{kind: List, items: [{kind: Pod}, {kind: List}, {a: b}]}":   "items[2]: kind is missing",
		"{kind: PodList, items: [{kind: Pod, metadata: {name: 1}}]}": "items[0]",
	} {
		if err := addYAML(&Cluster{}, text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want %q", text, err, want)
		}
	}
}

func TestObject(t *testing.T) {
	for want, o := range map[string]Object{
		"Pod vms/web": {"Pod", "vms", "web"}, "Namespace vms": {Kind: "Namespace", Name: "vms"}, "Pod": {Kind: "Pod"},
	} {
		if o.String() != want {
			t.Errorf("%+v is %q, want %q", o, o, want)
		}
	}
}

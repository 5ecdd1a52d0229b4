// Package kubevirt knows what adaptation needs of KubeVirt: what a VirtualMachineInstance says of its network, and what
// KubeVirt calls its pods and the interfaces in them. It reads objects and decides nothing.
package kubevirt

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"

	"github.com/meshvirt/meshvirt/pkg/plan"
)

// Binding is how a VMI's interface is connected to the pod network, in KubeVirt's terms.
type Binding string

// The bindings that make a difference. Every other network binding plugin is BindingPlugin.
const (
	// BindingUnknown is that of a VM whose VirtualMachineInstance is not known, and of what is no VM of KubeVirt's.
	BindingUnknown Binding = ""

	BindingNone       Binding = "none" // no interface on the pod's own network
	BindingMasquerade Binding = "masquerade"
	BindingBridge     Binding = "bridge"
	BindingPasst      Binding = "passt"
	BindingSlirp      Binding = "slirp"
	BindingSRIOV      Binding = "sriov"
	BindingPlugin     Binding = "plugin"
)

// VMI is what adaptation needs to know of a VirtualMachineInstance. The pod alone tells less: no
// port ranges, no custom networks, no binding but masquerade.
type VMI struct {
	Name        string
	Annotations map[string]string
	// Binding of the interface on the pod network, or on the network that Multus makes the pod's own.
	Binding Binding
	// TCP and UDP are the ports and port ranges that this interface lists. Both empty: none listed.
	TCP, UDP []plan.PortRange
	// IPv4 and IPv6 are the guest's addresses in the networks that the VMI names; invalid if it
	// names none, which means KubeVirt's defaults.
	IPv4, IPv6 netip.Addr
	// PodInterface is the pod interface's name from the VMI's status, empty if unknown.
	PodInterface string
}

// manifest is the part of a VirtualMachineInstance that is read. KubeVirt's own API package is not
// imported for it: it would bring its whole dependency tree for a dozen fields (docs/decisions).
type manifest struct {
	Kind     string `json:"kind"`
	Metadata struct {
		Name        string            `json:"name"`
		Annotations map[string]string `json:"annotations"`
	} `json:"metadata"`
	Spec struct {
		Domain struct {
			Devices struct {
				Interfaces []vmiInterface `json:"interfaces"`
			} `json:"devices"`
		} `json:"domain"`
		Networks []struct {
			Name   string `json:"name"`
			Multus *struct {
				Default bool `json:"default"`
			} `json:"multus"`
			Pod *struct {
				VMNetworkCIDR     string `json:"vmNetworkCIDR"`
				VMIPv6NetworkCIDR string `json:"vmIPv6NetworkCIDR"`
			} `json:"pod"`
		} `json:"networks"`
	} `json:"spec"`
	Status struct {
		Interfaces []struct {
			Name             string `json:"name"`
			PodInterfaceName string `json:"podInterfaceName"`
		} `json:"interfaces"`
	} `json:"status"`
}

type vmiInterface struct {
	Name         string          `json:"name"`
	Masquerade   json.RawMessage `json:"masquerade"`
	Bridge       json.RawMessage `json:"bridge"`
	PasstBinding json.RawMessage `json:"passtBinding"`
	Passt        json.RawMessage `json:"passt"`
	Slirp        json.RawMessage `json:"slirp"`
	SRIOV        json.RawMessage `json:"sriov"`
	Plugin       *struct {
		Name string `json:"name"`
	} `json:"binding"`
	Ports []struct {
		Protocol string `json:"protocol"`
		Port     int    `json:"port"`
	} `json:"ports"`
	PortRanges []struct {
		Protocol string `json:"protocol"`
		Start    int    `json:"start"`
		End      int    `json:"end"`
	} `json:"portRanges"`
}

// ParseVMI reads a VirtualMachineInstance in JSON.
func ParseVMI(b []byte) (*VMI, error) {
	var m manifest
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, fmt.Errorf("read VMI: %w", err)
	}
	if m.Kind != "VirtualMachineInstance" {
		return nil, fmt.Errorf("read VMI: kind is %q, want VirtualMachineInstance", m.Kind)
	}
	v := &VMI{Name: m.Metadata.Name, Annotations: m.Metadata.Annotations, Binding: BindingNone}
	for _, n := range m.Spec.Networks {
		if n.Pod == nil && (n.Multus == nil || !n.Multus.Default) {
			continue
		}
		i := slices.IndexFunc(m.Spec.Domain.Devices.Interfaces, func(i vmiInterface) bool { return i.Name == n.Name })
		if i < 0 {
			continue
		}
		iface := m.Spec.Domain.Devices.Interfaces[i]
		v.Binding = iface.binding()
		var err error
		if n.Pod != nil {
			if v.IPv4, err = secondAddress(n.Pod.VMNetworkCIDR); err != nil {
				return nil, fmt.Errorf("read VMI: vmNetworkCIDR of network %s: %w", n.Name, err)
			}
			if v.IPv6, err = secondAddress(n.Pod.VMIPv6NetworkCIDR); err != nil {
				return nil, fmt.Errorf("read VMI: vmIPv6NetworkCIDR of network %s: %w", n.Name, err)
			}
		}
		if err := iface.ports(v); err != nil {
			return nil, fmt.Errorf("read VMI: interface %s: %w", iface.Name, err)
		}
		for _, s := range m.Status.Interfaces {
			if s.Name == n.Name {
				v.PodInterface = s.PodInterfaceName
			}
		}
	}
	return v, nil
}

func (i vmiInterface) binding() Binding {
	set := func(m json.RawMessage) bool { return len(m) > 0 && string(m) != "null" }
	switch {
	case i.Plugin != nil && i.Plugin.Name == "passt", set(i.PasstBinding), set(i.Passt):
		return BindingPasst
	case i.Plugin != nil && i.Plugin.Name == "slirp", set(i.Slirp):
		return BindingSlirp
	case i.Plugin != nil:
		return BindingPlugin
	case set(i.Masquerade):
		return BindingMasquerade
	case set(i.SRIOV):
		return BindingSRIOV
	default: // KubeVirt's default for an interface that names none
		return BindingBridge
	}
}

func (i vmiInterface) ports(v *VMI) error {
	add := func(protocol string, first, last int) error {
		r, err := plan.ParsePortRange(fmt.Sprintf("%d-%d", first, last))
		if err != nil {
			return fmt.Errorf("port %d to %d: %w", first, last, err)
		}
		if protocol == "UDP" {
			v.UDP = append(v.UDP, r)
		} else { // KubeVirt defaults to TCP
			v.TCP = append(v.TCP, r)
		}
		return nil
	}
	for _, p := range i.Ports {
		if err := add(p.Protocol, p.Port, p.Port); err != nil {
			return err
		}
	}
	for _, r := range i.PortRanges {
		if err := add(r.Protocol, r.Start, r.End); err != nil {
			return err
		}
	}
	return nil
}

// secondAddress is the guest's in a masquerade network: the first is the bridge's.
func secondAddress(cidr string) (netip.Addr, error) {
	if cidr == "" {
		return netip.Addr{}, nil
	}
	p, err := netip.ParsePrefix(cidr)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("%q is no CIDR", cidr)
	}
	a := p.Masked().Addr().Next().Next()
	if !p.Contains(a) {
		return netip.Addr{}, fmt.Errorf("%q has no room for a gateway and a guest", cidr)
	}
	return a, nil
}

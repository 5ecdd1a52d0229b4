package kubevirt

import (
	"fmt"
	"strings"
	"testing"
)

func TestParseVMIRefuses(t *testing.T) {
	network := func(pod, iface string) string {
		return `{"kind":"VirtualMachineInstance","spec":{"networks":[{"name":"a","pod":{` + pod + `}}],"domain":{"devices":{"interfaces":[{"name":"a","masquerade":{},` + iface + `}]}}}}`
	}
	for in, want := range map[string]string{
		"{":                         "read VMI",
		`{"kind":"VirtualMachine"}`: `kind is "VirtualMachine", want VirtualMachineInstance`,
		network(`"vmNetworkCIDR":"10.0.0.0"`, `"ports":[]`):                              `vmNetworkCIDR of network a: "10.0.0.0" is no CIDR`,
		network(`"vmNetworkCIDR":"10.0.0.0/32"`, `"ports":[]`):                           "no room",
		network(``, `"ports":[{"port":70000}]`):                                          "interface a: port 70000",
		network(``, `"portRanges":[{"protocol":"TCP","start":9,"end":1}]`):               "interface a: port 9 to 1",
		network(`"vmIPv6NetworkCIDR":"fd00::/129"`, `"ports":[{"port":1,"name":"one"}]`): "vmIPv6NetworkCIDR",
	} {
		if _, err := ParseVMI([]byte(in)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want %q", in, err, want)
		}
	}
}

// TestMultusDefaultNetwork: a network that Multus makes the pod's own is the VMI's own too, and no other is.
func TestMultusDefaultNetwork(t *testing.T) {
	for isDefault, want := range map[bool]Binding{true: BindingMasquerade, false: BindingNone} {
		vmi, err := ParseVMI([]byte(fmt.Sprintf(`{"kind":"VirtualMachineInstance","spec":{"networks":[{"name":"a","multus":{"networkName":"mesh/second","default":%t}}],
			"domain":{"devices":{"interfaces":[{"name":"a","masquerade":{},"ports":[{"port":80}]}]}}}}`, isDefault)))
		if err != nil {
			t.Fatal(err)
		}
		if ports := map[bool]int{true: 1}[isDefault]; vmi.Binding != want || len(vmi.TCP) != ports {
			t.Errorf("default %t: binding %s, ports %v; want %s", isDefault, vmi.Binding, vmi.TCP, want)
		}
	}
}

// TestBindings has every binding as KubeVirt's releases spell it.
func TestBindings(t *testing.T) {
	for iface, want := range map[string]Binding{
		`"masquerade":{}`:              BindingMasquerade,
		`"bridge":{}`:                  BindingBridge,
		`"masquerade":null`:            BindingBridge, // KubeVirt's default
		`"sriov":{}`:                   BindingSRIOV,
		`"slirp":{}`:                   BindingSlirp,
		`"passt":{}`:                   BindingPasst,
		`"passtBinding":{}`:            BindingPasst,
		`"binding":{"name":"passt"}`:   BindingPasst,
		`"binding":{"name":"slirp"}`:   BindingSlirp,
		`"binding":{"name":"macvtap"}`: BindingPlugin,
	} {
		vmi, err := ParseVMI([]byte(`{"kind":"VirtualMachineInstance","spec":{"networks":[{"name":"a","pod":{}}],"domain":{"devices":{"interfaces":[{"name":"a",` + iface + `}]}}}}`))
		if err != nil || vmi.Binding != want {
			t.Errorf("%s: binding %+v (%v), want %s", iface, vmi, err, want)
		}
	}
}

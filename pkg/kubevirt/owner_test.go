package kubevirt

import "testing"

func TestIsVMI(t *testing.T) {
	for _, c := range []struct {
		apiVersion, kind string
		want             bool
	}{
		{"kubevirt.io/v1", "VirtualMachineInstance", true},
		{"kubevirt.io/v1alpha3", "VirtualMachineInstance", true},
		{"kubevirt.io/v1", "VirtualMachine", false},
		{"kubevirt.io.example.com/v1", "VirtualMachineInstance", false},
		{"v1", "VirtualMachineInstance", false},
	} {
		if got := IsVMI(c.apiVersion, c.kind); got != c.want {
			t.Errorf("%s %s: %t, want %t", c.apiVersion, c.kind, got, c.want)
		}
	}
}

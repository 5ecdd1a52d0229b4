package kubevirt

import "testing"

// TestInterfaceNames has how KubeVirt names the bridge of a pod interface, and back.
func TestInterfaceNames(t *testing.T) {
	for pod, bridge := range map[string]string{
		"eth0": "k6t-eth0", "net1": "k6t-net1", "ovn-udn1": "k6t-ovn-udn1",
		"pod37a8eec1ce1": "k6t-37a8eec1ce1", "pod1": "k6t-pod1", "podcafecafecag": "k6t-podcafecafecag",
	} {
		if got := Bridge(pod); got != bridge {
			t.Errorf("bridge of %s is %s, want %s", pod, got, bridge)
		}
		if got, ok := PodInterface(bridge); !ok || got != pod {
			t.Errorf("%s is of %s, want %s", bridge, got, pod)
		}
	}
}

package kubevirt

import (
	"net/netip"
	"strings"
)

// IsLauncher reports whether a pod with these labels is one in which KubeVirt runs a virtual machine.
func IsLauncher(labels map[string]string) bool { return labels["kubevirt.io"] == "virt-launcher" }

// KubeVirt's defaults for masquerade binding (vmNetworkCIDR 10.0.2.0/24, vmIPv6NetworkCIDR
// fd10:0:2::/120): the first address is the bridge's, the second the guest's.
var (
	DefaultGuestIPv4 = netip.MustParseAddr("10.0.2.2")
	DefaultGuestIPv6 = netip.MustParseAddr("fd10:0:2::2")
)

// bridgePrefix is how KubeVirt names the bridge in front of a pod interface. Where it hashes the name of a
// network, the pod interface is pod and 11 hexadecimal digits, and the bridge has the digits alone.
const (
	bridgePrefix = "k6t-"
	hashPrefix   = "pod"
	hashDigits   = 11
)

func hashed(digits string) bool {
	return len(digits) == hashDigits && strings.Trim(digits, "0123456789abcdef") == ""
}

// Bridge is the name of the bridge in front of a pod interface; empty means eth0.
func Bridge(podInterface string) string {
	if podInterface == "" {
		podInterface = "eth0"
	}
	if digits, ok := strings.CutPrefix(podInterface, hashPrefix); ok && hashed(digits) {
		podInterface = digits
	}
	return bridgePrefix + podInterface
}

// PodInterface gives the pod interface that a bridge is named after. It reports false for a name that is no such bridge's.
func PodInterface(bridge string) (string, bool) {
	name, ok := strings.CutPrefix(bridge, bridgePrefix)
	if hashed(name) {
		name = hashPrefix + name
	}
	return name, ok && name != ""
}

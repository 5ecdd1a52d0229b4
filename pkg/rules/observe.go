package rules

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
)

// ResolvConf is the path of the pod's resolver configuration, which kubelet mounts into every container.
const ResolvConf = "/etc/resolv.conf"

// Pod holds the facts that only the running pod knows.
type Pod struct {
	// IPv6 says that the mesh serves IPv6 here: its init put ::6 on the loopback device.
	IPv6 bool
	// Nameservers are the pod's DNS servers, in the order of /etc/resolv.conf. KubeVirt's DHCP gives
	// the guest the same.
	Nameservers []netip.Addr
}

// meshLoopback6 is the address that Istio's init and CNI plugin add to lo when they redirect IPv6.
// Envoy sends what is for the application from it, as it does from 127.0.0.6 in IPv4.
var meshLoopback6 = netip.MustParseAddr("::6")

// Observe reads the facts about the pod whose network namespace the caller is in. A missing
// resolvConf means no nameservers.
func Observe(resolvConf string) (Pod, error) {
	var pod Pod
	lo, err := net.InterfaceByName("lo")
	if err != nil {
		return pod, fmt.Errorf("look at the loopback device: %w", err)
	}
	addrs, err := lo.Addrs()
	if err != nil {
		return pod, fmt.Errorf("look at the loopback device: %w", err)
	}
	pod.IPv6 = slices.ContainsFunc(addrs, func(a net.Addr) bool {
		p, err := netip.ParsePrefix(a.String())
		return err == nil && p.Addr() == meshLoopback6
	})
	b, err := os.ReadFile(resolvConf)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return pod, fmt.Errorf("read the nameservers: %w", err)
	}
	pod.Nameservers = nameservers(string(b))
	return pod, nil
}

// nameservers reads the lines "nameserver ADDRESS" of resolv.conf(5); zones are dropped, and lines
// that it does not understand are skipped, as resolvers do.
func nameservers(conf string) []netip.Addr {
	var out []netip.Addr
	for s := bufio.NewScanner(strings.NewReader(conf)); s.Scan(); {
		f := strings.Fields(s.Text())
		if len(f) < 2 || f[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(f[1]); err == nil {
			out = append(out, a.Unmap().WithZone(""))
		}
	}
	return out
}

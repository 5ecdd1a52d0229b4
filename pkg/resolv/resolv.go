// Package resolv reads the pod's resolver configuration, by which rules and relay know the pod's DNS
// servers. Both read the same file, so that what they count is the same.
package resolv

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"strings"

	"github.com/meshvirt/meshvirt/pkg/plan"
)

// Conf is the path of the pod's resolver configuration, which kubelet mounts into every container.
const Conf = "/etc/resolv.conf"

// Nameservers are the pod's DNS servers, in the order of the file at path and plan.MaxNameservers at most: kubelet writes
// no more, and resolvers ignore them.
// KubeVirt's DHCP gives the guest the same. A missing file means none.
func Nameservers(path string) ([]netip.Addr, error) {
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read the nameservers: %w", err)
	}
	return nameservers(string(b)), nil
}

// nameservers reads the lines "nameserver ADDRESS" of resolv.conf(5); zones are dropped, and lines
// that it does not understand are skipped, as resolvers do.
func nameservers(conf string) []netip.Addr {
	var out []netip.Addr
	for s := bufio.NewScanner(strings.NewReader(conf)); s.Scan() && len(out) < plan.MaxNameservers; {
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

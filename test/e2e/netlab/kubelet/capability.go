package kubelet

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/meshvirt/meshvirt/test/e2e/netlab/container"
)

// defaults are the capabilities that containerd and CRI-O's ancestors give a container that says nothing.
var defaults = strings.Fields(`CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP
	NET_BIND_SERVICE SYS_CHROOT KILL AUDIT_WRITE`)

// capabilities gives the numbers of the capabilities in a container's bounding set. ALL is seen to
// first, and adding before dropping, as containerd does.
func capabilities(c *corev1.Capabilities, privileged bool) ([]uint, error) {
	if privileged {
		return nil, nil // container.Spec.Privileged says it
	}
	if c == nil {
		return numbers(defaults)
	}
	set := defaults
	if slices.Contains(c.Add, "ALL") {
		set = container.Capabilities
	}
	if slices.Contains(c.Drop, "ALL") {
		set = nil
	}
	set = slices.Clone(set)
	for _, a := range c.Add {
		if a != "ALL" {
			set = append(set, string(a))
		}
	}
	n, err := numbers(set)
	if err != nil {
		return nil, err
	}
	for _, d := range c.Drop {
		if d == "ALL" {
			continue
		}
		out, err := numbers([]string{string(d)})
		if err != nil {
			return nil, err
		}
		n = slices.DeleteFunc(n, func(i uint) bool { return i == out[0] })
	}
	return n, nil
}

func numbers(set []string) ([]uint, error) {
	var n []uint
	for _, name := range set {
		i := slices.Index(container.Capabilities, strings.TrimPrefix(name, "CAP_"))
		if i < 0 {
			return nil, fmt.Errorf("no capability %q", name)
		}
		n = append(n, uint(i))
	}
	slices.Sort(n)
	return slices.Compact(n), nil
}

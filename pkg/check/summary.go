package check

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// NotRunning stands for a mode in a Summary: of a virtual machine without a pod.
const NotRunning = "not running"

// Summary says what was looked at.
type Summary struct {
	// Release is that of the webhook, empty if it is not known.
	Release string `json:"release,omitempty"`
	// Machines counts virtual machines, and pods that opted in, by the mode that they are in.
	Machines map[string]int `json:"machines"`
}

// summary counts. A virtual machine with several pods, which is migrating, has the mode of the newest.
func (v *view) summary() Summary {
	modes, newest := map[string]string{}, map[string]metav1.Time{}
	for _, m := range slices.Concat(v.Machines, v.Instances) {
		modes[m.Namespace+"/"+m.Name] = NotRunning
	}
	for _, l := range v.launchers {
		name := l.pod.Name
		if owner := metav1.GetControllerOf(l.pod); owner != nil && owner.Kind == "VirtualMachineInstance" {
			name = owner.Name
		}
		key := l.pod.Namespace + "/" + name
		if was, ok := newest[key]; ok && l.pod.CreationTimestamp.Before(&was) {
			continue
		}
		newest[key], modes[key] = l.pod.CreationTimestamp, "off"
		if l.status.Mode != "" {
			modes[key] = string(l.status.Mode)
		}
	}
	s := Summary{Release: v.release, Machines: map[string]int{}}
	for _, mode := range modes {
		s.Machines[mode]++
	}
	return s
}

// String is for people, such as "3 virtual machines (1 not running, 2 rules)".
func (s Summary) String() string {
	total := 0
	var parts []string
	for _, mode := range slices.Sorted(maps.Keys(s.Machines)) {
		total += s.Machines[mode]
		parts = append(parts, fmt.Sprintf("%d %s", s.Machines[mode], mode))
	}
	switch total {
	case 0:
		return "no virtual machines"
	case 1:
		return "1 virtual machine (" + parts[0] + ")"
	}
	return fmt.Sprintf("%d virtual machines (%s)", total, strings.Join(parts, ", "))
}

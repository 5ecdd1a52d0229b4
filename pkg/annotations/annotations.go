// Package annotations knows every key that a user may set on a VirtualMachineInstance (KubeVirt
// copies them to the virt-launcher pod) or on an opted-in pod: its name, type, default and parser.
package annotations

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/meshvirt/meshvirt/pkg/plan"
)

// Domain is the prefix of every key of MeshVirt.
const Domain = "meshvirt.io/"

// The keys that a user may set. Keys describes them.
const (
	Mode                 = Domain + "mode"
	Interfaces           = Domain + "interfaces"
	GuestAddresses       = Domain + "guest-addresses"
	ExcludeOutboundCIDRs = Domain + "exclude-outbound-cidrs"
	ExcludeOutboundPorts = Domain + "exclude-outbound-ports"
	IncludeOutboundCIDRs = Domain + "include-outbound-cidrs"
	ExcludeInboundPorts  = Domain + "exclude-inbound-ports"
	Watch                = Domain + "watch"

	// Inject is also a label, on pods and (with the value "disabled") on namespaces. "true" opts a
	// pod in that is not a virt-launcher pod, "false" opts any pod out.
	Inject = Domain + "inject"
)

// The keys that MeshVirt itself sets on a pod it adapted.
const (
	// Status says what was done and why.
	Status = Domain + "status"
	// Undo holds what was changed, as it was before.
	Undo = Domain + "undo"
)

// Path is where a pod has them, for errors.
var Path = field.NewPath("metadata", "annotations")

// Own lists the keys that MeshVirt itself sets.
var Own = []string{Status, Undo}

// Settings are the parsed annotations of one pod.
type Settings struct {
	// Mode is plan.Auto if the user named none.
	Mode plan.Mode
	// Interfaces are the guest's virtual interfaces; nil lets the webhook find them.
	Interfaces []string
	// GuestIPv4 and GuestIPv6 are invalid unless the user gave them.
	GuestIPv4, GuestIPv6 netip.Addr
	// The exclusions add to the mesh's own.
	ExcludeOutboundCIDRs []netip.Prefix
	ExcludeOutboundPorts []uint16
	ExcludeInboundPorts  []uint16
	// Watch is WatchAuto if the user said nothing.
	Watch WatchChoice
	// IncludeOutbound, if not nil, replaces the mesh's own inclusion for the guest.
	IncludeOutbound *CIDRs
}

// WatchChoice says whether the container that writes the rules stays to keep them right.
type WatchChoice string

// The choices. WatchAuto is true where the pod shows that the guest's interface or address is not the default.
const (
	WatchAuto  WatchChoice = "auto"
	WatchTrue  WatchChoice = "true"
	WatchFalse WatchChoice = "false"
)

// CIDRs is "*" (All) or a list, which may be empty.
type CIDRs struct {
	All  bool
	List []netip.Prefix
}

// Key describes one annotation for parsing and for documentation.
type Key struct {
	// Name is the full key.
	Name string
	// Want says what a value must be; error messages end in it.
	Want string
	// Default says what holds without the annotation.
	Default string
	// Example is a valid value.
	Example string
	parse   func(*Settings, string) error
}

// Keys lists every key that Parse reads, in the order of the documentation.
var Keys = []Key{
	{Mode, "want one of " + modeNames(), "auto", "nat-proxy", parseMode},
	{Interfaces, "want interface names separated by commas, such as k6t-eth0", "found by binding", "k6t-eth0", parseInterfaces},
	{GuestAddresses, "want an IPv4 address, an IPv6 address or one of each, separated by a comma", "from the VMI, else 10.0.2.2,fd10:0:2::2", "10.0.2.2,fd10:0:2::2", parseGuestAddresses},
	{ExcludeOutboundCIDRs, wantCIDRs, "what the mesh excludes", "10.96.0.1/32,fd00:10:96::/112", func(s *Settings, v string) (err error) {
		s.ExcludeOutboundCIDRs, err = parseCIDRs(v)
		return err
	}},
	{ExcludeOutboundPorts, wantPorts, "what the mesh excludes", "3306,5432", func(s *Settings, v string) (err error) {
		s.ExcludeOutboundPorts, err = parsePorts(v)
		return err
	}},
	{IncludeOutboundCIDRs, `want "*" or ` + strings.TrimPrefix(wantCIDRs, "want "), "what the mesh includes", "10.0.0.0/8", parseInclude},
	{ExcludeInboundPorts, wantPorts, "what the mesh excludes", "22", func(s *Settings, v string) (err error) {
		s.ExcludeInboundPorts, err = parsePorts(v)
		return err
	}},
	{Watch, `want "auto", "true" or "false"`, `"auto": where the pod's network is not the usual one`, "true", parseWatch},
	{Inject, `want "true" or "false"`, `"true" for virt-launcher pods, "false" for others`, "false", parseInject},
}

const (
	wantCIDRs = "want IPv4 or IPv6 CIDRs or addresses, separated by commas"
	wantPorts = "want ports, 1 to 65535, separated by commas"
)

// Parse reads every annotation of MeshVirt in all. It returns all errors at once, each naming its
// key and the value wanted, and a warning for each key in MeshVirt's domain that it does not know.
func Parse(all map[string]string, root *field.Path) (Settings, []string, field.ErrorList) {
	s := Settings{Mode: plan.Auto, Watch: WatchAuto}
	var errs field.ErrorList
	for _, k := range Keys {
		v, ok := all[k.Name]
		if !ok {
			continue
		}
		if err := k.parse(&s, v); err != nil {
			detail := k.Want
			if msg := err.Error(); msg != "" {
				detail = msg + ": " + k.Want
			}
			errs = append(errs, field.Invalid(root.Key(k.Name), v, detail))
		}
	}
	var warnings []string
	for name := range all {
		if strings.HasPrefix(name, Domain) && !slices.Contains(Own, name) && !slices.ContainsFunc(Keys, func(k Key) bool { return k.Name == name }) {
			warnings = append(warnings, fmt.Sprintf("annotation %s is unknown and has no effect, known are %s", name, strings.Join(names(), ", ")))
		}
	}
	slices.Sort(warnings) // by name
	return s, warnings, errs
}

func names() []string {
	var out []string
	for _, k := range Keys {
		out = append(out, k.Name)
	}
	return out
}

func modeNames() string {
	var out []string
	for _, m := range plan.Modes {
		out = append(out, string(m))
	}
	return strings.Join(out, ", ")
}

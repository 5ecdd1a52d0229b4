package main

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"

	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/test/e2e/netlab"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/istio"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/kubevirt"
)

// alone is the mode of a pod that MeshVirt has never seen.
const alone plan.Mode = "istio-alone"

// The meshes.
const (
	sidecarMesh = "istio"
	ambientMesh = "istio-ambient"
)

// nativeNFT is the backend of rules that Istio writes by nft. The others are of iptables.
const nativeNFT = "nftables"

// A binding is how the guest is connected, and who plays it in the lab.
type binding struct {
	name    string
	guest   string                 // empty: of the machine or namespace that the run decides
	modes   map[string][]plan.Mode // by mesh; mode off is added for some
	absence string                 // why the lab has no cell of it
}

// bindings is the place for more: KubeVirt's network bindings on the pod network.
var bindings = []binding{
	{name: "masquerade", modes: map[string][]plan.Mode{
		sidecarMesh: {plan.Native, plan.Rules, plan.NATProxy, plan.TProxy}, ambientMesh: {plan.Ambient},
	}},
	// A process of virt-launcher's user with sockets of the pod is what the kernel sees of passt and slirp.
	{name: "passt", guest: processGuest, modes: map[string][]plan.Mode{sidecarMesh: {plan.Process}}},
	{name: "slirp", guest: processGuest, modes: map[string][]plan.Mode{sidecarMesh: {plan.Process}}},
	{name: "bridge", absence: "pods are left alone, and the lab cannot connect a guest so"},
}

// noNative is why some cells of mode native are not there.
const noNative = "mode native of pods whose mesh intercepts by TPROXY (admission denies it)"

// own are exclusions that the VM's user sets by MeshVirt's annotations.
type own struct {
	cidrs   []netip.Prefix
	out, in []uint16
}

// exclusions is what the pods with exclusions of their own have.
var exclusions = own{
	cidrs: []netip.Prefix{netlab.ExcludedCIDR, netip.MustParsePrefix("2001:db8:51::/48")},
	out:   []uint16{netlab.ExcludedPort},
	in:    []uint16{5901},
}

// A setup is a pod of the matrix but for the mode: what the mesh, KubeVirt and the user make of it.
type setup struct {
	binding string
	mesh    string
	version string
	backend string
	istio   istio.Case        // of a pod with a sidecar
	told    istio.Settings    // what its arguments say
	err     error             // why they cannot be read, or what istio-cni was told
	ambient istio.AmbientCase // of one without
	later   bool              // it joins the ambient mesh when the guest runs
	vmi     kubevirt.Case
	own     own
	// dual: the pod has IPv6, too. ipv6Only: it has nothing else.
	dual, ipv6Only bool
	// whole gives it the flows that take seconds, mode off, and the real guest; large only those of a gigabyte.
	whole, large bool
}

// modes are those in which the pod is run.
func (s setup) modes() []plan.Mode {
	i := slices.IndexFunc(bindings, func(b binding) bool { return b.name == s.binding })
	modes := bindings[i].modes[s.mesh]
	if s.told.TProxy {
		modes = slices.DeleteFunc(slices.Clone(modes), func(m plan.Mode) bool { return m == plan.Native }) // denied
	}
	if s.whole {
		return append(slices.Clone(modes), plan.Off)
	}
	return modes
}

// caseName tells what the mesh was told.
func (s setup) caseName() string {
	name := s.istio.Name
	if s.mesh == ambientMesh {
		name = s.ambient.Name
		if s.later {
			name += ", later"
		}
	}
	if len(s.own.out) > 0 {
		name += ", exclusions"
	}
	return name
}

func (s setup) String() string {
	return fmt.Sprintf("%s, %s %s (%s) by %s, KubeVirt %s", s.binding, s.mesh, s.version, s.caseName(), s.backend, s.vmi.Name)
}

// matrix lists every pod.
func matrix(c corpus, out io.Writer) ([]setup, error) {
	vmis, err := c.guests(out)
	if err != nil {
		return nil, err
	}
	ofIPv6 := func(v kubevirt.Case) bool { return v.PodIP["v4"] == "" }
	common, rare := c.kinds(slices.DeleteFunc(slices.Clone(vmis), ofIPv6))
	vmis6 := slices.DeleteFunc(vmis, func(v kubevirt.Case) bool { return !ofIPv6(v) })
	all, err := sidecarMatrix(c, common, rare, slices.Concat(c.kinds(vmis6)), out)
	if err != nil {
		return nil, fmt.Errorf("corpus: istio-iptables: %w", err)
	}
	ambients, err := ambientMatrix(c, common, out)
	if err != nil {
		return nil, fmt.Errorf("corpus: istio-ambient: %w", err)
	}
	if !slices.ContainsFunc(all, func(s setup) bool { return s.ipv6Only }) {
		for _, v := range vmis6 {
			fmt.Fprintf(out, "left out: KubeVirt %s, case %s: no istio-init was recorded in a pod of IPv6 alone\n", v.Release, v.Name)
		}
	}
	all = append(all, ambients...)
	if len(all) == 0 {
		return nil, errors.New("corpus: there is nothing to judge")
	}
	for i := range all {
		if s := &all[i]; s.mesh == sidecarMesh {
			_, s.told, s.err = c.istio.Recorded(s.istio)
		}
	}
	if slices.ContainsFunc(all, func(s setup) bool { return s.told.TProxy }) {
		fmt.Fprintln(out, "left out: "+noNative)
	}
	markWhole(all)
	return all, nil
}

// sidecarMatrix: each version and backend meets each kind of KubeVirt's rules in the richest case, with
// exclusions of the user's; so do interception by TPROXY and pods of IPv6 alone, the latter their own kinds, where their rules are not an older
// version's; every other case of a version, if no older version has the same, meets one kind and one backend, both changing from case to case;
// and what is rare meets the last version.
func sidecarMatrix(c corpus, common, rare, ofIPv6 []kind, out io.Writer) ([]setup, error) {
	versions, err := c.istio.Versions()
	if err != nil {
		return nil, err
	}
	var (
		all  []setup
		last []setup // of the last version by iptables, a backend each
		turn int
		seen = firsts{}
	)
	for _, version := range versions {
		cases, err := c.sidecars(version, out)
		if err != nil {
			return nil, err
		}
		for _, w := range ways {
			native, backends, kinds := w.native, backendsOf(w.native), common
			if w.ipv6 {
				kinds = ofIPv6
			}
			of := slices.DeleteFunc(slices.Clone(cases), func(k istio.Case) bool { return c.wayOf(k) != w })
			if len(of) == 0 {
				fmt.Fprintf(out, "left out: istio %s by %s%s: nothing was recorded\n", version, strings.Join(backends, " and "), w)
				continue
			}
			if len(kinds) == 0 {
				fmt.Fprintf(out, "left out: istio %s by %s%s: no VMI in such a pod was recorded\n", version, strings.Join(backends, " and "), w)
				continue
			}
			rich := slices.MaxFunc(of, func(a, b istio.Case) int { return c.richness(a) - c.richness(b) })
			once := w.tproxy || w.ipv6
			if once {
				if was := seen.add(c.essence(rich), version); was != version {
					fmt.Fprintf(out, "left out: istio %s, case %s: arguments and rules are those of %s\n", version, rich.Name, was)
					of = slices.DeleteFunc(of, func(k istio.Case) bool { return k.Name == rich.Name })
					backends = nil
				}
			} else if !native {
				last = nil
			}
			for _, b := range backends {
				for _, k := range kinds {
					all = append(all, masquerade(version, b, rich, k.at(turn), exclusions))
				}
				if !once && (!native || last == nil) {
					last = append(last, all[len(all)-1])
				}
				turn++
			}
			for _, k := range of {
				if k.Name == rich.Name {
					continue
				}
				if was := seen.add(c.essence(k), version); was != version {
					fmt.Fprintf(out, "left out: istio %s, case %s: arguments and rules are those of %s\n", version, k.Name, was)
					continue
				}
				backends := backendsOf(native)
				all = append(all, masquerade(version, backends[turn%len(backends)], k, kinds[turn%len(kinds)].at(turn), own{}))
				turn++
			}
		}
	}
	if len(last) > 0 {
		all = append(all, specials(last, common, rare)...)
	}
	return all, nil
}

// specials are pods like those of the last version, but for something that need not meet every version.
func specials(like []setup, common, rare []kind) []setup {
	s := like[0]
	gigabyte := masquerade(s.version, s.backend, s.istio, common[0].at(0), own{})
	gigabyte.large = true
	all := []setup{gigabyte}
	for i, k := range rare {
		all = append(all, masquerade(s.version, like[i%len(like)].backend, s.istio, k[0], exclusions))
	}
	for _, b := range bindings {
		if b.guest != "" {
			all = append(all, setup{binding: b.name, mesh: sidecarMesh, version: s.version, backend: s.backend, istio: s.istio, dual: true})
		}
	}
	return all
}

// backendsOf are what can load rules of Istio's own nftables, or of iptables.
func backendsOf(native bool) []string {
	if native {
		return []string{nativeNFT}
	}
	return []string{string(netlab.NFT), string(netlab.Legacy)}
}

func masquerade(version, backend string, k istio.Case, v kubevirt.Case, o own) setup {
	return setup{
		binding: "masquerade", mesh: sidecarMesh, version: version, backend: backend, istio: k, vmi: v, own: o,
		dual: v.PodIP["v4"] != "" && v.PodIP["v6"] != "", ipv6Only: v.PodIP["v4"] == "",
	}
}

// ambientMatrix: every recorded enrolment meets every kind of KubeVirt's rules, before or after the guest starts.
func ambientMatrix(c corpus, kinds []kind, out io.Writer) ([]setup, error) {
	versions, err := c.ambient.Versions()
	if err != nil {
		return nil, err
	}
	var all []setup
	for _, version := range versions {
		cases, err := c.ambient.Cases(version)
		if err != nil {
			return nil, err
		}
		for i, k := range cases {
			var err error
			if len(k.Unknown) > 0 {
				err = fmt.Errorf("settings %s are not known", strings.Join(k.Unknown, ", "))
			}
			backends := backendsOf(k.Native)
			for j, kind := range kinds {
				v := kind.at(i)
				all = append(all, setup{
					binding: "masquerade", mesh: ambientMesh, version: version, backend: backends[(i+j)%len(backends)], ambient: k, err: err, vmi: v, own: exclusions,
					later: (i+j/2)%2 == 1, dual: k.DualStack && v.PodIP["v6"] != "",
				})
			}
		}
	}
	if len(all) == 0 {
		fmt.Fprintln(out, "left out: mode ambient: nothing was recorded")
	}
	return all, nil
}

// markWhole chooses pods so that each mode meets each of KubeVirt's modes with either family and with both: they
// get the real guest.
func markWhole(all []setup) {
	seen := map[string]bool{}
	for i, s := range all {
		if s.binding != "masquerade" || s.large {
			continue
		}
		key := fmt.Sprint(s.mesh, s.vmi.Istio, s.dual, s.ipv6Only, s.told.TProxy)
		if !seen[key] {
			seen[key], all[i].whole = true, true
		}
	}
}

package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/meshvirt/meshvirt/pkg/annotations"
	"github.com/meshvirt/meshvirt/pkg/kubevirt"
	"github.com/meshvirt/meshvirt/pkg/mesh"
	"github.com/meshvirt/meshvirt/pkg/mutate"
	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/templates"
	"github.com/meshvirt/meshvirt/test/e2e/netlab"
	"github.com/meshvirt/meshvirt/tools"
)

// A pod is as Istio's injector, or KubeVirt in an ambient mesh, has left one with the setup's binding;
// what the setup says differently is put in.
var podFiles = map[string]string{
	"masquerade " + sidecarMesh: "v1.9.0/masquerade-istio-ports/injected-1.31.0-rc.0-native.yaml",
	"masquerade " + ambientMesh: "v1.9.0/ambient-label/pod.yaml",
	"passt " + sidecarMesh:      "v1.9.0/passt-istio-ports/injected-1.31.0-rc.0-native.yaml",
	"slirp " + sidecarMesh:      "v1.0.1/slirp-istio/injected-1.22.8-classic.yaml",
}

// pod is the pod before MeshVirt sees it.
func (s setup) pod() (*corev1.Pod, error) {
	root, err := tools.Root()
	if err != nil {
		return nil, err
	}
	b, err := os.ReadFile(filepath.Join(root, "test/corpus/pods", podFiles[s.binding+" "+s.mesh]))
	if err != nil {
		return nil, err
	}
	pod := new(corev1.Pod)
	if err := yaml.Unmarshal(b, pod); err != nil {
		return nil, err
	}
	if pod.Annotations == nil {
		pod.Annotations = map[string]string{}
	}
	if s.mesh == ambientMesh {
		if !s.ambient.DNS {
			pod.Annotations[mesh.AnnotationAmbientDNS] = "false"
		}
		setReroute(pod, s.ambient.Virtual)
		return pod, nil
	}
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		if c.Name != "istio-init" {
			continue
		}
		c.Command, c.Args = nil, s.istio.Args
		if !slices.ContainsFunc(c.Args, func(a string) bool { return path.Base(a) == "istio-iptables" }) {
			c.Args = append([]string{"istio-iptables"}, c.Args...)
		}
		c.Env, c.Image = nil, "docker.io/istio/proxyv2:"+s.version
		for _, name := range slices.Sorted(maps.Keys(s.istio.Env)) {
			c.Env = append(c.Env, corev1.EnvVar{Name: name, Value: s.istio.Env[name]})
		}
	}
	setReroute(pod, strings.Join(s.told.Virtual, ","))
	return pod, nil
}

// setReroute gives a pod the annotation by which Istio was told of the interface, or none.
func setReroute(pod *corev1.Pod, interfaces string) {
	for _, key := range []string{mesh.AnnotationRerouteInterfaces, mesh.AnnotationKubevirtInterfaces} {
		delete(pod.Annotations, key)
		if interfaces != "" {
			pod.Annotations[key] = interfaces
		}
	}
}

// facts are the VMI as the webhook reads it.
func (s setup) facts(mode plan.Mode) (mutate.Facts, error) {
	type port struct {
		Port     uint16 `json:"port"`
		Protocol string `json:"protocol,omitempty"`
	}
	iface := map[string]any{"name": "default"}
	switch s.binding {
	case "passt":
		iface["passtBinding"] = struct{}{}
	default:
		iface[s.binding] = struct{}{}
	}
	var ports []port
	for _, p := range s.vmi.Ports {
		ports = append(ports, port{p.Port, p.Protocol})
	}
	var ranges []map[string]any
	for _, r := range s.vmi.Ranges {
		ranges = append(ranges, map[string]any{"protocol": r.Protocol, "start": r.Start, "end": r.End})
	}
	iface["ports"], iface["portRanges"] = ports, ranges
	b, err := json.Marshal(map[string]any{
		"kind":     "VirtualMachineInstance",
		"metadata": map[string]any{"name": "vm", "annotations": s.annotations(mode)},
		"spec": map[string]any{
			"domain":   map[string]any{"devices": map[string]any{"interfaces": []any{iface}}},
			"networks": []any{map[string]any{"name": "default", "pod": struct{}{}}},
		},
	})
	if err != nil {
		return mutate.Facts{}, err
	}
	vmi, err := kubevirt.ParseVMI(b)
	return mutate.Facts{VMI: vmi}, err
}

// annotations are the user's on the VMI.
func (s setup) annotations(mode plan.Mode) map[string]string {
	a := map[string]string{annotations.Mode: string(mode)}
	set := func(key string, list []string) {
		if len(list) > 0 {
			a[key] = strings.Join(list, ",")
		}
	}
	var cidrs []string
	for _, c := range s.own.cidrs {
		cidrs = append(cidrs, c.String())
	}
	set(annotations.ExcludeOutboundCIDRs, cidrs)
	set(annotations.ExcludeOutboundPorts, words(s.own.out))
	set(annotations.ExcludeInboundPorts, words(s.own.in))
	return a
}

func words(ports []uint16) (all []string) {
	for _, p := range ports {
		all = append(all, strconv.Itoa(int(p)))
	}
	return all
}

// admit gives what the webhook makes of the pod, and what it says. Without MeshVirt the pod stays as it is.
func (s setup) admit(mode plan.Mode) (*corev1.Pod, error) {
	pod, err := s.pod()
	if err != nil || mode == alone {
		return pod, err
	}
	facts, err := s.facts(mode)
	if err != nil {
		return nil, err
	}
	adapted, report, errs := mutate.Apply(pod, facts, mutate.Config{Image: templates.Image{Name: templates.DefaultImage}})
	if len(errs) > 0 {
		return nil, fmt.Errorf("the pod was denied: %w", errs.ToAggregate())
	}
	if report.Mode != mode {
		return nil, fmt.Errorf("the pod got mode %s, because %s", report.Mode, report.Reason)
	}
	return adapted, nil
}

// appPort is a TCP port of the guest's: 80, else the first that the VMI lists.
func (s setup) appPort() uint16 {
	if s.lists("TCP", netlab.HTTPPort) {
		return netlab.HTTPPort
	}
	for _, p := range s.vmi.Ports {
		if p.Protocol != "UDP" {
			return p.Port
		}
	}
	for _, r := range s.vmi.Ranges {
		if r.Protocol != "UDP" {
			return r.Start
		}
	}
	return netlab.HTTPPort
}

// listsPorts reports whether the VMI lists ports at all: without a list every port is the guest's.
func (s setup) listsPorts() bool { return len(s.vmi.Ports)+len(s.vmi.Ranges) > 0 }

// lists reports whether a port is the guest's.
func (s setup) lists(protocol string, port uint16) bool {
	if !s.listsPorts() {
		return true
	}
	is := func(p string) bool { return (p == "UDP") == (protocol == "UDP") }
	for _, p := range s.vmi.Ports {
		if is(p.Protocol) && p.Port == port {
			return true
		}
	}
	for _, r := range s.vmi.Ranges {
		if is(r.Protocol) && r.Start <= port && port <= r.End {
			return true
		}
	}
	return false
}

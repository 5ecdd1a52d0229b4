package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/meshvirt/meshvirt/pkg/annotations"
	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/test/e2e/apiserver"
	"github.com/meshvirt/meshvirt/test/e2e/netlab"
)

// show admits the pod in a mode, runs it and follows every flow.
func (d *demo) show(ctx context.Context, mode plan.Mode) (results []netlab.Result, err error) {
	d.heading("Mode %s: %s", mode, meanings[mode])
	var (
		pod *corev1.Pod
		lab *netlab.Lab
	)
	defer func() {
		if lab == nil {
			return
		}
		if e := lab.Close(); err == nil {
			err = e
		}
	}()
	if err := d.steps([]step{
		{"create the virt-launcher pod", func() (err error) {
			pod, err = d.admit(ctx, mode)
			return err
		}},
		{"run the pod: its init containers, KubeVirt's rules, the guest", func() (err error) {
			if lab, err = netlab.New(ctx, netlab.Options{DualStack: true, VM: d.machine, Pod: pod, Image: d.image}); err != nil {
				return err
			}
			_, err = lab.RunPod(ctx, pod, kubevirtRules)
			return err
		}},
	}); err != nil {
		return nil, err
	}
	d.pod(pod, d.cluster.Warnings())
	for _, e := range expectations {
		r := lab.Check(ctx, netlab.FlowNamed(e.flow))
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		results = append(results, r)
		d.flow(e, r)
	}
	d.line("")
	return results, nil
}

// admit creates the pod as KubeVirt would for a VMI with these annotations and a UDP port, and gives
// back what the API server stored.
func (d *demo) admit(ctx context.Context, mode plan.Mode) (*corev1.Pod, error) {
	recording, err := apiserver.Load(kubevirtRelease, vmCase, istioRelease+"-"+istioSetup)
	if err != nil {
		return nil, err
	}
	pod := recording.Pod.DeepCopy()
	for i := range pod.Spec.Containers {
		if c := &pod.Spec.Containers[i]; c.Name == "compute" {
			c.Ports = append(c.Ports, corev1.ContainerPort{Name: "udp", ContainerPort: netlab.UDPPort, Protocol: corev1.ProtocolUDP})
		}
	}
	cidrs, ports := netlab.ExcludedCIDR.String(), strconv.Itoa(netlab.ExcludedPort)
	pod.Annotations[annotations.Mode] = string(mode)
	if mode == plan.Off {
		pod.Annotations["traffic.sidecar.istio.io/excludeOutboundIPRanges"] = cidrs
		pod.Annotations["traffic.sidecar.istio.io/excludeOutboundPorts"] = ports
		if recording, err = recording.Edited(func(injected *corev1.Pod) { exclude(injected, cidrs, ports) }); err != nil {
			return nil, err
		}
	} else {
		pod.Annotations[annotations.ExcludeOutboundCIDRs] = cidrs
		pod.Annotations[annotations.ExcludeOutboundPorts] = ports
	}
	namespace := "demo-" + string(mode)
	if err := d.cluster.Namespace(ctx, namespace, apiserver.Injecting); err != nil {
		return nil, err
	}
	d.injector.Use(namespace, recording)
	return d.cluster.Admit(ctx, namespace, pod)
}

// exclude makes of istio-init's recorded arguments what Istio's template makes of its annotations for
// exclusions: the value of -x, and -o, which is left out without that annotation.
func exclude(injected *corev1.Pod, cidrs, ports string) {
	for i := range injected.Spec.InitContainers {
		c := &injected.Spec.InitContainers[i]
		if c.Name != "istio-init" {
			continue
		}
		for j := range c.Args[:len(c.Args)-1] {
			if c.Args[j] == "-x" {
				c.Args[j+1] = cidrs
			}
		}
		c.Args = append(c.Args, "-o", ports)
	}
}

// pod prints what admission made of the pod.
func (d *demo) pod(pod *corev1.Pod, warnings []string) {
	var inits []string
	for _, c := range pod.Spec.InitContainers {
		switch {
		case strings.HasPrefix(c.Name, "meshvirt-"):
			inits = append(inits, d.good(c.Name))
		case c.Name == "istio-init":
			inits = append(inits, fmt.Sprintf("%s (%s)", c.Name, interfaceArgs(c.Args)))
		case strings.HasPrefix(c.Name, "istio-"):
			inits = append(inits, c.Name)
		}
	}
	d.labelled("  network containers", wrap(inits, "", width-labelWidth))
	var status struct{ Mode, Reason string }
	if json.Unmarshal([]byte(pod.Annotations[annotations.Status]), &status) == nil {
		d.labelled("  "+annotations.Status, []string{fmt.Sprintf("mode %s, because %s", status.Mode, status.Reason)})
	}
	for _, w := range warnings {
		d.labelled("  warning", []string{w})
	}
	d.line("")
}

// interfaceArgs gives the arguments of istio-init that name interfaces.
func interfaceArgs(args []string) string {
	var found []string
	for i, a := range args {
		switch a {
		case "-k", "-c":
			if i+1 < len(args) {
				found = append(found, a+" "+args[i+1])
			}
		}
		if strings.HasPrefix(a, "--istio-exclude-interfaces=") || strings.HasPrefix(a, "--kube-virt-interfaces=") {
			found = append(found, a)
		}
	}
	return strings.Join(found, " ")
}

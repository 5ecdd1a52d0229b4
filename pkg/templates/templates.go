// Package templates builds the containers that MeshVirt injects. It takes decisions from a plan and
// makes none: what a container may do follows from which container it is.
package templates

import (
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/meshvirt/meshvirt/pkg/plan"
)

// Names of the injected containers, and the programs they run in the data-plane image.
const (
	RulesName    = "meshvirt-rules"
	ProxyName    = "meshvirt-proxy"
	RulesProgram = "/meshvirt-rules"
	ProxyProgram = "/meshvirt-proxy"
)

// NoTokenName names the empty volume that hides the pod's API token from our containers.
const NoTokenName = "meshvirt-no-token"

// tokenPath is where API servers mount the pod's token into every container that mounts nothing there itself
// (ServiceAccount admission, https://kubernetes.io/docs/reference/access-authn-authz/service-accounts-admin/).
const tokenPath = "/var/run/secrets/kubernetes.io/serviceaccount"

// Ours reports whether a container is one that is built here, by its name.
func Ours(container string) bool { return container == RulesName || container == ProxyName }

// Index gives where in a list the first container stands that has one of the names; negative if none has.
func Index(list []corev1.Container, names ...string) int {
	for i := range list { // a container is too large to be handed to a function
		if slices.Contains(names, list[i].Name) {
			return i
		}
	}
	return -1
}

// DefaultImage is the data-plane image of this release.
const DefaultImage = "ghcr.io/meshvirt/dataplane:" + plan.Release

// Image is the data-plane image, and what its containers may use.
type Image struct {
	// Name is the reference, by tag or digest.
	Name string
	// PullPolicy may be empty: the API server then defaults it by tag.
	PullPolicy corev1.PullPolicy
	// RulesResources and ProxyResources take the place of a container's defaults, unless they are empty.
	RulesResources, ProxyResources corev1.ResourceRequirements
}

// Rules is the init container that writes the nftables table of p and ends. It is root with
// NET_ADMIN and nothing else: a user other than root would lose the capability at exec, because
// Kubernetes sets no ambient capabilities (KEP-2763), and the image has no file capabilities. If the plan
// has a WatchPort, it is a native sidecar that runs on and keeps the rules right.
func Rules(p plan.Plan, image Image, guaranteed bool) (corev1.Container, error) {
	env, err := p.Encode()
	if err != nil {
		return corev1.Container{}, err
	}
	c := corev1.Container{
		Name:            RulesName,
		Image:           image.Name,
		ImagePullPolicy: image.PullPolicy,
		Command:         []string{RulesProgram},
		Env:             []corev1.EnvVar{{Name: plan.Env, Value: env}},
		Resources:       resources(image.RulesResources, rulesDefaults, guaranteed),
		SecurityContext: securityContext(0, "NET_ADMIN"),
		// Standard error explains a refused plan; without this, `kubectl describe pod` shows nothing.
		TerminationMessagePolicy: corev1.TerminationMessageFallbackToLogsOnError,
	}
	if p.WatchPort != 0 {
		c.Args = []string{"-watch"}
		sidecar(&c, "meshvirt-watch", p.WatchPort)
	}
	return c, nil
}

// Proxy is the relay of the modes nat-proxy and tproxy, a native sidecar. It needs no capability in mode
// nat-proxy; in mode tproxy NET_RAW, for IP_TRANSPARENT, which it gives up once it listens. Its plan must
// have a Proxy.
func Proxy(p plan.Plan, image Image, guaranteed bool) (corev1.Container, error) {
	env, err := p.Encode()
	if err != nil {
		return corev1.Container{}, err
	}
	var capabilities []corev1.Capability
	if p.Mode == plan.TProxy {
		capabilities = append(capabilities, "NET_RAW")
	}
	c := corev1.Container{
		Name:                     ProxyName,
		Image:                    image.Name,
		ImagePullPolicy:          image.PullPolicy,
		Command:                  []string{ProxyProgram},
		Env:                      []corev1.EnvVar{{Name: plan.Env, Value: env}},
		Resources:                resources(image.ProxyResources, proxyDefaults, guaranteed),
		SecurityContext:          securityContext(int64(p.Proxy.UID), capabilities...),
		TerminationMessagePolicy: corev1.TerminationMessageFallbackToLogsOnError,
	}
	sidecar(&c, "meshvirt-status", p.Proxy.StatusPort)
	return c, nil
}

// NoToken is the volume for WithoutToken.
func NoToken() corev1.Volume {
	return corev1.Volume{Name: NoTokenName, VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}
}

// IsNoToken reports whether a volume is NoToken, by its name.
func IsNoToken(v corev1.Volume) bool { return v.Name == NoTokenName }

// WithoutToken gives a container that has nothing where API servers would mount the pod's token, and reports whether it had
// to add that. What is mounted there already stays.
func WithoutToken(c corev1.Container) (_ corev1.Container, added bool) {
	if slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return m.MountPath == tokenPath }) {
		return c, false
	}
	c.VolumeMounts = append(slices.Clip(c.VolumeMounts), corev1.VolumeMount{Name: NoTokenName, MountPath: tokenPath, ReadOnly: true})
	return c, true
}

// sidecar makes c a native sidecar (KEP-753): an init container that keeps running, is up before the
// containers behind it, outlives the virtual machine and is not counted by virt-controller, which waits
// for every ordinary container of the pod to be ready. It answers probes on a port with the given name.
func sidecar(c *corev1.Container, portName string, port uint16) {
	probe := func(path string, period, failures int32) *corev1.Probe {
		return &corev1.Probe{
			ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{
				Path: path,
				Port: intstr.FromInt32(int32(port)),
			}},
			PeriodSeconds:    period,
			FailureThreshold: failures,
			TimeoutSeconds:   2,
			SuccessThreshold: 1,
		}
	}
	always := corev1.ContainerRestartPolicyAlways
	c.RestartPolicy = &always
	c.Ports = []corev1.ContainerPort{{Name: portName, ContainerPort: int32(port), Protocol: corev1.ProtocolTCP}}
	// Not by /readyz: one that starts again in a pod that contradicts its plan would never have started.
	c.StartupProbe = probe("/livez", 1, 60)
	c.ReadinessProbe = probe("/readyz", 10, 3)
	c.LivenessProbe = probe("/livez", 10, 6)
}

// defaults are what a container asks for: CPU, more of it in a Guaranteed pod, where it is the limit as well,
// and memory.
type defaults struct{ cpu, limit, memory resource.Quantity }

var (
	rulesDefaults = defaultsOf("10m", "100m", "64Mi")
	proxyDefaults = defaultsOf("20m", "1", "128Mi")
)

func defaultsOf(cpu, limit, memory string) defaults {
	return defaults{resource.MustParse(cpu), resource.MustParse(limit), resource.MustParse(memory)}
}

// resources asks for own, or by default for d; a Guaranteed pod stays one only if requests
// equal limits in every container. Otherwise the default is without a CPU limit, as it would only
// throttle the VM's traffic.
func resources(own corev1.ResourceRequirements, d defaults, guaranteed bool) corev1.ResourceRequirements {
	if guaranteed {
		both := corev1.ResourceList{corev1.ResourceCPU: d.limit, corev1.ResourceMemory: d.memory}
		for _, list := range []corev1.ResourceList{own.Requests, own.Limits} { // a limit counts more than a request
			maps.Copy(both, list)
		}
		return corev1.ResourceRequirements{Limits: both, Requests: both.DeepCopy()}
	}
	if len(own.Requests)+len(own.Limits) > 0 {
		return *own.DeepCopy()
	}
	return corev1.ResourceRequirements{
		Limits:   corev1.ResourceList{corev1.ResourceMemory: d.memory},
		Requests: corev1.ResourceList{corev1.ResourceCPU: d.cpu, corev1.ResourceMemory: d.memory},
	}
}

// securityContext runs a container as uid, in a group of the same number, with only the capabilities
// named, and says every field: nothing is left to the pod's own security context.
func securityContext(uid int64, capabilities ...corev1.Capability) *corev1.SecurityContext {
	yes, no, nonRoot := true, false, uid != 0
	return &corev1.SecurityContext{
		Privileged:               &no,
		AllowPrivilegeEscalation: &no,
		ReadOnlyRootFilesystem:   &yes,
		RunAsNonRoot:             &nonRoot,
		RunAsUser:                &uid,
		RunAsGroup:               &uid,
		Capabilities:             &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}, Add: capabilities},
		SeccompProfile:           &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
	}
}

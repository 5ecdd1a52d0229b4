package check

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	admissionregistration "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/version"

	"github.com/meshvirt/meshvirt/pkg/inventory"
	"github.com/meshvirt/meshvirt/pkg/kubevirt"
	"github.com/meshvirt/meshvirt/pkg/mutate"
	"github.com/meshvirt/meshvirt/pkg/record"
	"github.com/meshvirt/meshvirt/pkg/templates"
)

// A fault is put into a cluster that is well. It must then have findings of these codes, in order, and no others.
type fault struct {
	name string
	put  func(*testing.T, world)
	want []Code
	says string // in the first finding
}

func one(name string, code Code, says string, put func(*testing.T, world)) fault {
	return fault{name, put, []Code{code}, says}
}

var never, ignore, old = admissionregistration.NeverReinvocationPolicy, admissionregistration.Ignore, &version.Info{Major: "1", Minor: "28+", GitVersion: "v1.28.15"}

var faults = []fault{
	one("a resource may not be read", CannotTell, "you may not; not checked: releases", func(_ *testing.T, c world) {
		c.Unknown, c.Deployments = map[string]string{inventory.Deployments: "you may not"}, nil
	}),
	one("no KubeVirt", NoKubeVirt, "", func(_ *testing.T, c world) {
		c.NoKubeVirt, c.Unknown = true, map[string]string{inventory.Machines: "", inventory.Instances: ""}
	}),
	{"nothing installed", func(_ *testing.T, c world) { c.Configurations = c.Configurations[1:] }, []Code{NotInstalled}, ""},
	{"nothing installed, and a pod without us", func(t *testing.T, c world) {
		c.Configurations = c.Configurations[1:]
		c.undo(t)
	}, []Code{NotInstalled}, ""},
	one("two installed", InstalledTwice, "meshvirt-webhook has the webhook", func(_ *testing.T, c world) {
		c.Configurations = append(c.Configurations, *c.Configurations[0].DeepCopy())
		c.Configurations[2].Name = "other"
	}),
	one("called early, and never again", BeforeMesh, "istio-sidecar-injector", func(_ *testing.T, c world) {
		c.Configurations[0].Name = "a-webhook"
		c.Configurations[0].Webhooks[0].ReinvocationPolicy = &never
	}),
	one("called early", OnlyReinvoked, "istio-sidecar-injector", func(_ *testing.T, c world) { c.Configurations[0].Name = "a-webhook" }),
	one("never called again", NeverReinvoked, "", func(_ *testing.T, c world) { c.Configurations[0].Webhooks[0].ReinvocationPolicy = &never }),
	one("an empty bundle", CABundleMissing, "", func(_ *testing.T, c world) { c.bundle(nil) }),
	one("a bundle of text", CABundleMissing, "", func(_ *testing.T, c world) { c.bundle([]byte("certificate")) }),
	one("a bundle that has ended", CABundleExpired, "", func(t *testing.T, c world) { c.bundle(authority(t, now.AddDate(-1, 0, 0), now.Add(-time.Minute))) }),
	one("a bundle that has not begun", CABundleExpired, "", func(t *testing.T, c world) { c.bundle(authority(t, now.Add(time.Minute), now.AddDate(1, 0, 0))) }),
	one("a bundle that ends", CABundleExpiring, "2026-01-22", func(t *testing.T, c world) { c.bundle(authority(t, now.AddDate(-1, 0, 0), now.AddDate(0, 0, 20))) }),
	{"a bundle of two, one of which has ended", func(t *testing.T, c world) {
		c.bundle(append(authority(t, now.AddDate(-1, 0, 0), now.Add(-time.Minute)), c.Configurations[0].Webhooks[0].ClientConfig.CABundle...))
	}, nil, ""},
	{"a bundle of a week", func(t *testing.T, c world) { c.bundle(authority(t, now.AddDate(0, 0, -1), now.AddDate(0, 0, 6))) }, nil, ""},
	one("no Service", ServiceMissing, "", func(_ *testing.T, c world) { c.Services = nil }),
	one("no slices", NoEndpoints, "do not start or migrate (failurePolicy Fail)", func(_ *testing.T, c world) { c.EndpointSlices = nil }),
	one("no slices, and nobody depends on them", NoEndpoints, "start without being adapted", func(_ *testing.T, c world) {
		c.EndpointSlices = nil
		c.Configurations[0].Webhooks[0].FailurePolicy = &ignore
	}),
	one("slices of another Service", NoEndpoints, "", func(_ *testing.T, c world) { c.EndpointSlices[0].Labels = nil }),
	{"a Service that leads elsewhere", func(_ *testing.T, c world) {
		c.EndpointSlices, c.Services[0].Spec.Type = nil, corev1.ServiceTypeExternalName
	}, nil, ""},
	one("nobody ready", NoEndpoints, "", func(_ *testing.T, c world) { c.ready(false, false) }),
	one("one ready", FewEndpoints, "1 of 2", func(_ *testing.T, c world) { c.ready(true, false) }),
	one("the same pod in the slices of both families", FewEndpoints, "1 of 2", func(_ *testing.T, c world) {
		c.ready(true, false)
		c.EndpointSlices = append(c.EndpointSlices, c.EndpointSlices[0])
	}),
	{"a pod that is adapted", func(_ *testing.T, c world) { c.Tried = &inventory.Trial{Namespace: here, Adapted: true} }, nil, ""},
	one("a pod without an answer", Unanswered, "connection refused: virtual machines do not start", func(_ *testing.T, c world) {
		c.Tried = &inventory.Trial{Namespace: here, Err: errors.New(`failed calling webhook "inject.meshvirt.io": connection refused`)}
	}),
	one("a pod that is not adapted", NotAsked, "namespace mesh", func(_ *testing.T, c world) { c.Tried = &inventory.Trial{Namespace: here} }),
	one("a pod that another webhook keeps", CannotTell, "for another reason", func(_ *testing.T, c world) {
		c.Tried = &inventory.Trial{Namespace: here, Err: errors.New(`failed calling webhook "other": connection refused`)}
	}),
	one("a pod in a namespace that is left out", CannotTell, "is not to be asked", func(_ *testing.T, c world) {
		c.Namespaces = append(c.Namespaces, corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "out", Labels: map[string]string{"meshvirt.io/inject": "disabled"}}})
		c.Tried = &inventory.Trial{Namespace: "out"}
	}),
	one("no namespace for a pod", CannotTell, "is not to be asked", func(_ *testing.T, c world) { c.Tried = &inventory.Trial{} }),
	{"a pod without an answer, and nobody may see who was asked", func(_ *testing.T, c world) {
		c.Configurations, c.Unknown = nil, map[string]string{inventory.Configurations: "you may not"}
		c.Tried = &inventory.Trial{Namespace: here, Err: errors.New(`failed calling webhook "inject.meshvirt.io": connection refused`)}
	}, []Code{Unanswered, CannotTell}, "virtual machines do not start"},
	{"a pod, and nothing installed", func(_ *testing.T, c world) {
		c.Configurations, c.Tried = c.Configurations[1:], &inventory.Trial{Namespace: here}
	}, []Code{NotInstalled}, ""},
	{"another release", func(_ *testing.T, c world) {
		c.Deployments[0].Spec.Template.Labels["app.kubernetes.io/version"] = "9.9.9"
	}, []Code{PluginRelease, OtherRelease}, "9.9.9"},
	one("another data plane", DataPlaneRelease, "dataplane:9.9.9", func(_ *testing.T, c world) { c.argument("--data-plane-image=registry:5000/dataplane:9.9.9") }),
	{"a data plane by digest", func(_ *testing.T, c world) { c.argument("--data-plane-image=dataplane:9.9.9@sha256:00") }, nil, ""},
	one("a default mode for later servers", DefaultModeUnavailable, "tproxy", func(_ *testing.T, c world) {
		c.Server, c.Pods = old, nil
		c.argument("--default-mode=tproxy")
	}),
	{"a default mode for later servers, and a pod that has what it needs", func(_ *testing.T, c world) {
		c.Server = old
		c.argument("--default-mode=tproxy")
	}, nil, ""},

	one("a level that refuses a pod", PodSecurity, "baseline", func(_ *testing.T, c world) { c.Namespaces[0].Labels[mutate.PodSecurity] = "baseline" }),
	one("a level that refuses a machine's next pod", PodSecurity, "restricted", func(_ *testing.T, c world) {
		c.Namespaces[0].Labels[mutate.PodSecurity], c.Pods, c.Instances = "restricted", nil, nil
	}),
	{"a level that refuses nobody here", func(_ *testing.T, c world) {
		c.Namespaces[0].Labels[mutate.PodSecurity] = "restricted"
		c.annotate("meshvirt.io/mode", "off")
	}, nil, ""},
	one("a level that refuses an ambient machine", PodSecurity, "", func(_ *testing.T, c world) {
		c.Namespaces[0].Labels = map[string]string{mutate.PodSecurity: "baseline", "istio.io/dataplane-mode": "ambient"}
		c.Pods = nil
	}),
	one("a level that refuses a machine, and nobody knows the injectors", PodSecurity, "", func(_ *testing.T, c world) {
		c.Namespaces[0].Labels[mutate.PodSecurity], c.Pods = "baseline", nil
		c.Unknown, c.Configurations = map[string]string{inventory.Configurations: ""}, nil
	}),
	{"a level that does not matter, as the machine the injector leaves alone", func(_ *testing.T, c world) {
		c.Namespaces[0].Labels[mutate.PodSecurity], c.Pods = "restricted", nil
		c.Configurations[1].Webhooks[0].ObjectSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"inject": "yes"}}
	}, nil, ""},
	{"a level that does not matter, as the machine wants no sidecar", func(_ *testing.T, c world) {
		c.Namespaces[0].Labels[mutate.PodSecurity], c.Pods = "restricted", nil
		c.machines(func(m *inventory.Machine) { m.Labels = map[string]string{"sidecar.istio.io/inject": "false"} })
	}, nil, ""},
	{"a level that does not matter, as the machine opted out by label", func(_ *testing.T, c world) {
		c.Namespaces[0].Labels[mutate.PodSecurity], c.Pods = "restricted", nil
		c.machines(func(m *inventory.Machine) { m.Labels = map[string]string{"meshvirt.io/inject": "false"} })
	}, nil, ""},
	{"a level that does not matter, as the machine is in a namespace that opted out", func(_ *testing.T, c world) {
		c.Namespaces[0].Labels[mutate.PodSecurity], c.Pods = "restricted", nil
		c.Namespaces[0].Labels["meshvirt.io/inject"] = "disabled"
	}, nil, ""},
	{"a level that does not matter, as the machine sends from a process", func(_ *testing.T, c world) {
		c.Namespaces[0].Labels[mutate.PodSecurity], c.Pods = "restricted", nil
		c.annotate("meshvirt.io/mode", "process")
	}, nil, ""},
	{"a level that does not matter, as the machine has another binding", func(_ *testing.T, c world) {
		c.Namespaces[0].Labels[mutate.PodSecurity], c.Pods = "restricted", nil
		c.machines(func(m *inventory.Machine) { m.VMI.Binding = kubevirt.BindingBridge })
	}, nil, ""},
	one("a namespace left out", NamespaceLeftOut, "", func(t *testing.T, c world) {
		c.Configurations[0].Webhooks[0].NamespaceSelector.MatchLabels = map[string]string{"vms": "yes"}
		c.undo(t)
	}),
	{"a namespace left out, and not in the mesh", func(_ *testing.T, c world) {
		c.Configurations[0].Webhooks[0].NamespaceSelector.MatchLabels = map[string]string{"vms": "yes"}
		c.Namespaces[0].Labels, c.Pods = nil, nil
	}, nil, ""},
	{"a namespace that opted out", func(t *testing.T, c world) {
		c.Namespaces[0].Labels["meshvirt.io/inject"] = "disabled"
		c.undo(t)
	}, nil, ""},
	one("a namespace's label", NoEffect, `"false"`, func(_ *testing.T, c world) { c.Namespaces[0].Labels["meshvirt.io/inject"] = "false" }),

	one("a bad annotation", InvalidAnnotation, `spec.template.metadata.annotations[meshvirt.io/mode]: Invalid value: "telepathy"`, func(_ *testing.T, c world) { c.annotate("meshvirt.io/mode", "telepathy") }),
	one("a bad annotation of the VMI", InvalidAnnotation, `: metadata.annotations[meshvirt.io/mode]: Invalid value: "telepathy"`, func(_ *testing.T, c world) {
		c.Instances[0].Annotations = map[string]string{"meshvirt.io/mode": "telepathy"}
	}),
	one("an unknown annotation", NoEffect, "meshvirt.io/moed", func(_ *testing.T, c world) { c.annotate("meshvirt.io/moed", "off") }),
	one("an annotation of the VirtualMachine", NoEffect, "meshvirt.io/mode", func(_ *testing.T, c world) { c.Machines[0].Own["meshvirt.io/mode"] = "off" }),
	one("a label", NoEffect, `spec.template.metadata.labels[meshvirt.io/inject] is "no"`, func(_ *testing.T, c world) {
		c.Machines[0].Labels = map[string]string{"meshvirt.io/inject": "no"}
	}),
	one("a mode for later servers", ModeUnavailable, "mode nat-proxy", func(_ *testing.T, c world) {
		c.annotate("meshvirt.io/mode", "nat-proxy")
		c.Server, c.Pods, c.Instances = old, nil, nil
	}),
	one("a watcher for later servers", ModeUnavailable, "meshvirt.io/watch", func(_ *testing.T, c world) {
		c.Server, c.Pods, c.Instances = old, nil, nil
		c.annotate("meshvirt.io/watch", "true")
	}),
	{"a mode for later servers without a mesh", func(_ *testing.T, c world) {
		c.annotate("meshvirt.io/mode", "nat-proxy")
		c.Server, c.Pods, c.Namespaces[0].Labels = old, nil, nil
	}, nil, ""},
	{"a mode for later servers in a pod", func(t *testing.T, c world) {
		c.Pods = nil
		c.addFile(t, vm+"injected-1.31.0-rc.0-classic.yaml")
		c.Pods[0].Status.Phase = corev1.PodRunning
		c.adapt(t)
		for i := range c.Pods[0].Spec.InitContainers {
			c.Pods[0].Spec.InitContainers[i].RestartPolicy = nil
		}
		c.annotate("meshvirt.io/mode", "nat-proxy")
		c.Server = old
	}, []Code{ModeUnavailable, NextRefused}, "mode nat-proxy"},
	one("a pod refused by us", Refused, "denied", func(_ *testing.T, c world) {
		c.Instances[0].Refusal = `failed to create virtual machine pod: admission webhook "inject.meshvirt.io" denied the request`
	}),
	one("a pod refused for us", Refused, "NET_ADMIN", func(_ *testing.T, c world) {
		c.Instances[0].Refusal = `pods "virt-launcher-x" is forbidden: violates PodSecurity "baseline:latest": non-default capabilities (container "meshvirt-rules" must not include "NET_ADMIN")`
	}),
	{"a pod refused by others", func(_ *testing.T, c world) { c.Instances[0].Refusal = "exceeded quota" }, nil, ""},

	one("a pod past us", NotAdapted, "mesh (istio)", func(t *testing.T, c world) { c.undo(t) }),
	one("a pod past us, and nobody knows its namespace", NotAdapted, "", func(t *testing.T, c world) {
		c.Unknown, c.Namespaces = map[string]string{inventory.Namespaces: ""}, nil
		c.Configurations[0].Webhooks[0].NamespaceSelector.MatchLabels = map[string]string{"vms": "yes"}
		c.undo(t)
	}),
	{"a pod past us that ends", func(t *testing.T, c world) {
		c.undo(t)
		c.Pods[0].Status.Phase = corev1.PodSucceeded
	}, nil, ""},
	{"a pod past us that goes", func(t *testing.T, c world) {
		c.undo(t)
		c.Pods[0].DeletionTimestamp = &metav1.Time{}
	}, nil, ""},
	one("another binding", LeftAlone, "BindingUnsupported", func(t *testing.T, c world) {
		c.undo(t)
		c.Instances[0].VMI.Binding = kubevirt.BindingBridge
	}),
	one("a mode without a mesh", NotInMesh, "mode rules", func(t *testing.T, c world) {
		c.Pods = nil
		c.addFile(t, vm+"pod.yaml")
		c.Pods[0].Status.Phase = corev1.PodRunning
		c.annotate("meshvirt.io/mode", "rules")
	}),
	one("another release's pod", OtherRelease, "0.0.9", func(_ *testing.T, c world) {
		c.Pods[0].Annotations["meshvirt.io/status"] = `{"version":"0.0.9","mode":"rules"}`
	}),
	one("a record that somebody changed", UndoUnreadable, "meshvirt.io/undo", func(_ *testing.T, c world) { c.Pods[0].Annotations["meshvirt.io/undo"] = "{" }),
	one("a mode for another mesh", NextRefused, "mode ambient is for pods of an ambient mesh", func(_ *testing.T, c world) { c.annotate("meshvirt.io/mode", "ambient") }),
	{"an annotation that the next pod will not have", func(_ *testing.T, c world) { c.Pods[0].Annotations["meshvirt.io/mode"] = "ambient" }, nil, ""},
	one("a limit of the mesh", KnownIssue, "in mode native KubeVirt forwards inbound port 22", func(t *testing.T, c world) {
		c.annotate("meshvirt.io/mode", "native")
		c.adapt(t)
	}),
	one("a doubt", Doubtful, "meshvirt.io/watch: false has no effect", func(t *testing.T, c world) {
		c.annotate("meshvirt.io/mode", "tproxy")
		c.annotate("meshvirt.io/watch", "false")
		c.adapt(t)
	}),
	one("an image that is not there", ContainerFailed, "ErrImagePull no such image", func(t *testing.T, c world) {
		c.status(t, templates.RulesName).State = corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ErrImagePull", Message: "no such image"}}
	}),
	{"a container that waits for its turn", func(t *testing.T, c world) {
		c.status(t, templates.RulesName).State = corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "PodInitializing"}}
	}, nil, ""},
	one("rules that failed", ContainerFailed, "exit code 1 (Error), saying: the plan is of release 9", func(t *testing.T, c world) {
		c.status(t, templates.RulesName).State = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 1, Reason: "Error", Message: "the plan is of release 9\n"}}
	}),
	one("rules that hang", ContainerNotReady, templates.RulesName, func(t *testing.T, c world) {
		s := c.status(t, templates.RulesName)
		s.Ready, s.State = false, corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(now.Add(-time.Hour))}}
	}),
	one("a relay that is not ready", ContainerNotReady, templates.ProxyName, func(t *testing.T, c world) {
		c.relayed(t)
		c.status(t, templates.ProxyName).Ready = false
	}),
	{"a relay that starts", func(t *testing.T, c world) {
		c.relayed(t)
		c.status(t, templates.ProxyName).Ready = false
		c.status(t, templates.ProxyName).State.Running.StartedAt = metav1.NewTime(now.Add(-time.Second))
	}, nil, ""},
	one("a relay that was killed", ContainerRestarted, "3 times by now: it ended with exit code 137 (OOMKilled)", func(t *testing.T, c world) {
		c.relayed(t)
		s := c.status(t, templates.ProxyName)
		s.RestartCount, s.LastTerminationState.Terminated = 3, &corev1.ContainerStateTerminated{ExitCode: 137, Reason: "OOMKilled"}
	}),
}

func TestFaults(t *testing.T) {
	if r := Run(well(t).Cluster); len(r.Findings) > 0 {
		t.Fatalf("nothing is wrong, and it says %+v", r.Findings)
	}
	covered := map[Code]bool{}
	for _, f := range faults {
		t.Run(f.name, func(t *testing.T) {
			c := well(t)
			f.put(t, c)
			r := Run(c.Cluster)
			var got []Code
			for _, found := range r.Findings {
				got = append(got, found.Code)
				if found.Severity != Codes[found.Code].Severity || found.Message == "" || found.Fix == "" || found.Object.Kind == "" {
					t.Errorf("incomplete: %+v", found)
				}
			}
			if diff := cmp.Diff(f.want, got); diff != "" {
				t.Fatalf("(-want +got)\n%s%+v", diff, r.Findings)
			}
			if len(f.want) > 0 && !strings.Contains(": "+r.Findings[0].Message, f.says) {
				t.Errorf("%q, want %q in it", r.Findings[0].Message, f.says)
			}
		})
		for _, code := range f.want {
			covered[code] = true
		}
	}
	for _, code := range slices.Sorted(maps.Keys(Codes)) {
		if !covered[code] {
			t.Errorf("no fault has %s", code)
		}
	}
}

// What to do about a doubt is a command that can be run as it is.
func TestDoubtLeadsToExplain(t *testing.T) {
	c := well(t)
	c.annotate("meshvirt.io/mode", "tproxy")
	c.annotate("meshvirt.io/watch", "false")
	c.adapt(t)
	c.Pods[0].Name = "virt-launcher-web-abcde"
	const want = "kubectl meshvirt explain -n mesh virt-launcher-web-abcde shows the whole."
	if all := Run(c.Cluster).Findings; len(all) != 1 || all[0].Fix != want {
		t.Errorf("%+v, want %q", all, want)
	}
}

// The worst comes first, and otherwise the table's order stays.
func TestOrder(t *testing.T) {
	c := well(t)
	c.Configurations[0].Name = "a-webhook"
	c.bundle(nil)
	c.annotate("meshvirt.io/moed", "off")
	c.undo(t)
	var got []Code
	for _, f := range Run(c.Cluster).Findings {
		got = append(got, f.Code)
	}
	if diff := cmp.Diff([]Code{CABundleMissing, NotAdapted, OnlyReinvoked, NoEffect}, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestSummary(t *testing.T) {
	c := well(t)
	if got := Run(c.Cluster).String(); got != "1 virtual machine (1 rules)" || Run(c.Cluster).Release != "0.1.0" {
		t.Errorf("%q, release %q", got, Run(c.Cluster).Release)
	}
	// A migration: the target's pod is new, and past us.
	target := *c.Pods[0].DeepCopy()
	target.Annotations = nil
	target.CreationTimestamp = metav1.NewTime(now)
	c.Pods = append(c.Pods, target)
	c.Machines = append(c.Machines, inventory.Machine{Object: inventory.Object{Kind: "VirtualMachine", Namespace: here, Name: "stopped"}})
	if got := Run(c.Cluster).String(); got != "2 virtual machines (1 not running, 1 off)" {
		t.Errorf("%q", got)
	}
	slices.Reverse(c.Pods)
	if got := Run(c.Cluster).String(); got != "2 virtual machines (1 not running, 1 off)" {
		t.Errorf("in another order %q", got)
	}
	if got := Run(&inventory.Cluster{}).String(); got != "no virtual machines" {
		t.Errorf("%q", got)
	}
}

func (c world) bundle(b []byte) { c.Configurations[0].Webhooks[0].ClientConfig.CABundle = b }

// machines changes the VirtualMachine and its VMI.
func (c world) machines(change func(*inventory.Machine)) {
	change(&c.Machines[0])
	change(&c.Instances[0])
}

func (c world) argument(arg string) {
	container := &c.Deployments[0].Spec.Template.Spec.Containers[0]
	container.Args = append(container.Args, arg)
}

func (c world) ready(ready ...bool) {
	for i := range ready {
		c.EndpointSlices[0].Endpoints[i].Conditions.Ready = &ready[i]
	}
}

// undo makes the pod one that started before us.
func (c world) undo(t *testing.T) {
	t.Helper()
	pod, _, err := record.Undo(&c.Pods[0])
	if err != nil {
		t.Fatal(err)
	}
	c.Pods[0] = *pod
	c.Pods[0].Status.InitContainerStatuses = nil
}

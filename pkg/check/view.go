package check

import (
	"maps"
	"slices"
	"strings"

	admissionregistration "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/meshvirt/meshvirt/pkg/annotations"
	"github.com/meshvirt/meshvirt/pkg/inventory"
	"github.com/meshvirt/meshvirt/pkg/mutate"
	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/record"
)

// webhook is one of MeshVirt's, in its configuration.
type webhook struct {
	object  inventory.Object
	webhook *admissionregistration.MutatingWebhook
}

// view is a cluster, and what several checks need to have found in it.
type view struct {
	*inventory.Cluster
	ours       []webhook
	deployment *appsv1.Deployment           // of the webhook; nil if it was not found
	release    string                       // of the webhook; empty if it is not known
	config     mutate.Config                // of the webhook
	oldServer  bool                         // without native sidecars
	namespaces map[string]map[string]string // labels by name
	instances  map[types.UID]*inventory.Machine
	launchers  []launcher
}

// launcher is a pod that lives.
type launcher struct {
	pod    *corev1.Pod
	object inventory.Object
	vmi    *inventory.Machine // nil if it is not known
	status record.Status      // zero if the pod is not adapted
	// What admission would make of the pod now, as it was before us.
	report mutate.Report
	errs   field.ErrorList
	undo   error // why that is not known
}

func (v *view) unknown(resource string) bool {
	_, ok := v.Unknown[resource]
	return ok
}

func look(c *inventory.Cluster) *view {
	v := &view{
		Cluster: c, deployment: c.Webhook(), config: Config(c), oldServer: NoNativeSidecars(c),
		namespaces: map[string]map[string]string{}, instances: map[types.UID]*inventory.Machine{},
	}
	for i := range c.Configurations {
		configuration := &c.Configurations[i]
		for j := range configuration.Webhooks {
			if w := &configuration.Webhooks[j]; w.Name == inventory.WebhookName {
				v.ours = append(v.ours, webhook{inventory.Object{Kind: "MutatingWebhookConfiguration", Name: configuration.Name}, w})
			}
		}
	}
	if v.deployment != nil {
		v.release = v.deployment.Spec.Template.Labels["app.kubernetes.io/version"]
	}
	for i := range c.Namespaces {
		v.namespaces[c.Namespaces[i].Name] = c.Namespaces[i].Labels
	}
	for i := range c.Instances {
		v.instances[c.Instances[i].UID] = &c.Instances[i]
	}
	for i := range c.Pods {
		// One without a phase is a manifest that no API server has had; one that ended matters no more.
		if pod := &c.Pods[i]; pod.DeletionTimestamp == nil && slices.Contains([]corev1.PodPhase{corev1.PodPending, corev1.PodRunning}, pod.Status.Phase) {
			v.launchers = append(v.launchers, v.launcher(pod))
		}
	}
	return v
}

// service gives nil for a webhook that is called by URL, or by a Service that is not there.
func (v *view) service(w webhook) *corev1.Service {
	ref := w.webhook.ClientConfig.Service
	if ref == nil {
		return nil
	}
	return v.Service(*ref)
}

func (v *view) launcher(pod *corev1.Pod) launcher {
	l := launcher{pod: pod, object: inventory.Object{Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name}, status: record.StatusOf(pod)}
	before, _, err := record.Undo(pod)
	if err != nil {
		l.undo = err
		return l
	}
	// What a namespace enforces is a finding of its own, once.
	around := maps.Clone(v.namespaces[pod.Namespace])
	delete(around, mutate.PodSecurity)
	facts := mutate.Facts{NamespaceLabels: around, NoNativeSidecars: v.oldServer}
	if owner := metav1.GetControllerOf(pod); owner != nil {
		if l.vmi = v.instances[owner.UID]; l.vmi != nil {
			facts.VMI, facts.Unknown = l.vmi.VMI, l.vmi.Unreadable
			before = withSettings(before, l.vmi.Annotations)
		}
	}
	_, l.report, l.errs = mutate.Apply(before, facts, v.config)
	return l
}

// withSettings gives a pod with the settings in place of its own: KubeVirt copies a VMI's annotations when it creates a
// pod, and the next one gets what the VMI has by then.
func withSettings(pod *corev1.Pod, settings map[string]string) *corev1.Pod {
	out := *pod
	out.Annotations = maps.Clone(pod.Annotations)
	maps.DeleteFunc(out.Annotations, func(k, _ string) bool { return strings.HasPrefix(k, annotations.Domain) })
	for k, v := range settings {
		if strings.HasPrefix(k, annotations.Domain) {
			metav1.SetMetaDataAnnotation(&out.ObjectMeta, k, v)
		}
	}
	return &out
}

// called reports whether one of our webhooks is called for pods of the namespace, as far as is known.
func (v *view) called(namespace string) bool {
	set, ok := v.namespaces[namespace]
	return !ok || len(v.ours) == 0 || slices.ContainsFunc(v.ours, func(w webhook) bool {
		return selects(w.webhook.NamespaceSelector, set)
	})
}

// selects takes a selector that cannot be read, which API servers refuse, for one that selects nothing.
func selects(selector *metav1.LabelSelector, set map[string]string) bool {
	if selector == nil {
		return true
	}
	s, err := metav1.LabelSelectorAsSelector(selector)
	return err == nil && s.Matches(labels.Set(set))
}

// injects reports whether Istio takes a pod of the machine into its mesh: one of its injectors is called, or the
// mesh is ambient.
func (v *view) injects(m inventory.Machine) bool {
	around := v.namespaces[m.Namespace]
	pod := map[string]string{"kubevirt.io": "virt-launcher"}
	maps.Copy(pod, m.Labels)
	const dataplane, inject = "istio.io/dataplane-mode", "sidecar.istio.io/inject"
	if mode, ok := pod[dataplane]; mode == "ambient" || !ok && around[dataplane] == "ambient" {
		return true
	}
	if pod[inject] == "false" || pod[inject] == "" && m.Annotations[inject] == "false" {
		return false
	}
	if v.unknown(inventory.Configurations) { // by what Istio's chart makes of them, unless told otherwise
		return pod[inject] == "true" || pod["istio.io/rev"] != "" || around["istio-injection"] == "enabled" || around["istio.io/rev"] != ""
	}
	for _, c := range v.Configurations {
		for _, w := range c.Webhooks {
			if strings.HasSuffix(w.Name, istioInjector) && selects(w.NamespaceSelector, around) && selects(w.ObjectSelector, pod) {
				return true
			}
		}
	}
	return false
}

// optedOut reports whether somebody has told MeshVirt to leave the machine, or its namespace, alone.
func (v *view) optedOut(m inventory.Machine) bool {
	parsed, _, _ := annotations.Parse(m.Annotations, nil)
	return v.namespaces[m.Namespace][annotations.Inject] == mutate.OptedOutValue || parsed.Mode == plan.Off ||
		m.Annotations[annotations.Inject] == "false" || m.Labels[annotations.Inject] == "false"
}

package check

import (
	"fmt"
	"slices"
	"strings"

	admissionregistration "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshvirt/meshvirt/pkg/annotations"
	"github.com/meshvirt/meshvirt/pkg/inventory"
	"github.com/meshvirt/meshvirt/pkg/mutate"
	"github.com/meshvirt/meshvirt/pkg/plan"
)

// TrialNamespace gives the namespace to try a pod in: the first that has a virtual machine and whose pods the webhook is
// asked about, or else the first that is no part of Kubernetes. It is empty if there is none.
func TrialNamespace(c *inventory.Cluster) string {
	v := look(c)
	var candidates []string
	for _, m := range slices.Concat(c.Instances, c.Machines) {
		candidates = append(candidates, m.Namespace)
	}
	for _, ns := range c.Namespaces {
		if !strings.HasPrefix(ns.Name, "kube-") {
			candidates = append(candidates, ns.Name)
		}
	}
	if i := slices.IndexFunc(candidates, v.reviewed); i >= 0 {
		return candidates[i]
	}
	return ""
}

// reviewed reports whether pods of the namespace are adapted, as far as is known.
func (v *view) reviewed(namespace string) bool {
	return v.called(namespace) && v.namespaces[namespace][annotations.Inject] != mutate.OptedOutValue
}

// TrialPod is a pod for a dry run. It asks to be adapted and looks as if Istio had injected it; no mesh's injector takes it
// for its own. Mode process adds annotations and nothing else, so that no policy of the namespace has a reason to refuse it.
func TrialPod(namespace string) *corev1.Pod {
	restricted := &corev1.SecurityContext{
		AllowPrivilegeEscalation: new(false),
		RunAsNonRoot:             new(true),
		RunAsUser:                new(int64(1337)),
		Capabilities:             &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
		SeccompProfile:           &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
	}
	const image = "meshvirt.invalid/trial"
	return &corev1.Pod{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{
			Namespace:    namespace,
			GenerateName: "meshvirt-check-",
			Labels:       map[string]string{annotations.Inject: "true", "sidecar.istio.io/inject": "false", "kuma.io/sidecar-injection": "disabled"},
			Annotations: map[string]string{
				annotations.Mode: string(plan.Process), "linkerd.io/inject": "disabled", "consul.hashicorp.com/connect-inject": "false",
			},
		},
		Spec: corev1.PodSpec{
			InitContainers: []corev1.Container{{Name: "istio-init", Image: image, SecurityContext: restricted, Args: []string{"istio-iptables"}}},
			Containers:     []corev1.Container{{Name: "istio-proxy", Image: image, SecurityContext: restricted}},
		},
	}
}

// tried judges what became of that pod, also for users who may not read how MeshVirt is installed.
func tried(v *view) []Finding {
	t := v.Tried
	if t == nil || len(v.ours) == 0 && !v.unknown(inventory.Configurations) {
		return nil
	}
	// The default policy is Fail, and under any other there would be no error.
	w := webhook{inventory.Object{Kind: "MutatingWebhookConfiguration"}, &admissionregistration.MutatingWebhook{}}
	if len(v.ours) > 0 {
		w = v.ours[0]
	}
	said := ""
	if t.Err != nil {
		said = t.Err.Error()
	}
	object := inventory.Object{Kind: "Pod", Namespace: t.Namespace}
	switch {
	case t.Namespace == "" || !v.reviewed(t.Namespace):
		return []Finding{finding(CannotTell, object, "the webhook is not to be asked about pods here, by its namespaceSelector or the namespace's label "+annotations.Inject, "Name another namespace by -n.")}
	case strings.Contains(said, fmt.Sprintf("failed calling webhook %q", inventory.WebhookName)):
		fix := "API servers reach its pods by the Service's port: see that a pod is ready, and what is between them (NetworkPolicy, firewalls of the nodes, a control plane elsewhere)."
		if strings.Contains(said, "x509:") || strings.Contains(said, "tls:") {
			fix = "caBundle is not of who signed the certificate that is served. The webhook, or cert-manager's cainjector, writes it within seconds: see their logs. For a certificate of your own set webhook.caBundle."
		}
		return []Finding{finding(Unanswered, w.object, "the API server gets no answer: "+said+": "+w.unanswered(), fix)}
	case t.Err != nil:
		return []Finding{finding(CannotTell, object, "it was not taken, for another reason than MeshVirt's webhook: "+said, "Try in another namespace (-n), or as a user who may create pods there.")}
	case !t.Adapted:
		return []Finding{finding(NotAsked, w.object, fmt.Sprintf("a pod in namespace %s came back as it was: virtual machines there start as the mesh alone makes them", t.Namespace),
			"Install the chart's namespaceSelector, objectSelector, rules and matchConditions as they are. With failurePolicy Ignore see the webhook's log as well: API servers go on without its answer.")}
	}
	return nil
}

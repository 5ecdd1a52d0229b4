package check

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"slices"
	"strings"
	"time"

	admissionregistration "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"

	"github.com/meshvirt/meshvirt/pkg/inventory"
	"github.com/meshvirt/meshvirt/pkg/plan"
)

// expiring is how long before its end a certificate is told of, or a quarter of its life if that is shorter. What the
// webhook or cert-manager make is renewed after two thirds of it.
const expiring = 30 * 24 * time.Hour

// istioInjector is how the webhooks of Istio's injectors, of all revisions, end; injectors has the other meshes' too.
const istioInjector = "sidecar-injector.istio.io"

var injectors = []string{istioInjector, "linkerd-proxy-injector.linkerd.io", "kuma-injector.kuma.io", "connect-injector.consul.hashicorp.com"}

func unreadable(v *view) (all []Finding) {
	for _, r := range inventory.Resources {
		reason := v.Unknown[r.Resource]
		if reason == "" {
			continue
		}
		all = append(all, finding(CannotTell, inventory.Object{Kind: r.Kind}, fmt.Sprintf("%s; not checked: %s", reason, r.Why),
			"Ask for the rights that docs/check.md lists."))
	}
	if v.NoKubeVirt {
		all = append(all, finding(NoKubeVirt, inventory.Object{Kind: "VirtualMachineInstance"}, "the API server does not serve kubevirt.io/v1: there are no virtual machines",
			"Install KubeVirt; MeshVirt will see it."))
	}
	return all
}

func installed(v *view) []Finding {
	if len(v.ours) == 0 {
		return []Finding{finding(NotInstalled, inventory.Object{Kind: "MutatingWebhookConfiguration"},
			"none has the webhook "+inventory.WebhookName+": virtual machines start as the mesh alone makes them", "Install MeshVirt, see docs/install.md.")}
	}
	var all []Finding
	for _, w := range v.ours[1:] {
		all = append(all, finding(InstalledTwice, w.object,
			fmt.Sprintf("%s has the webhook %s as well: pods are adapted by both, and do not start while either does not answer", v.ours[0].object.Name, inventory.WebhookName),
			"MeshVirt is one per cluster: delete the configuration that no helm release of yours owns (the chart's is meshvirt-webhook)."))
	}
	return all
}

// order looks at the names of the configurations, which is the order in which the API server calls them.
func order(v *view) (all []Finding) {
	for _, w := range v.ours {
		again := w.webhook.ReinvocationPolicy != nil && *w.webhook.ReinvocationPolicy == admissionregistration.IfNeededReinvocationPolicy
		var later []string
		for _, c := range v.Configurations {
			mesh := slices.ContainsFunc(c.Webhooks, func(w admissionregistration.MutatingWebhook) bool {
				return slices.ContainsFunc(injectors, func(end string) bool { return strings.HasSuffix(w.Name, end) })
			})
			if mesh && c.Name > w.object.Name {
				later = append(later, c.Name)
			}
		}
		const fix = "Install the chart as it is: its configuration is called meshvirt-webhook, which sorts behind the meshes', and has reinvocationPolicy IfNeeded."
		switch {
		case len(later) > 0 && again:
			all = append(all, finding(OnlyReinvoked, w.object, "it is called before "+strings.Join(later, ", ")+", and again because that changes the pod: each pod costs two reviews", fix))
		case len(later) > 0:
			all = append(all, finding(BeforeMesh, w.object, "it is called before "+strings.Join(later, ", ")+", and not again: MeshVirt sees no mesh in any pod", fix))
		case !again:
			all = append(all, finding(NeverReinvoked, w.object, "reinvocationPolicy is not IfNeeded: what a webhook that is called later does to the mesh's arguments stays unseen", fix))
		}
	}
	return all
}

func trust(v *view) (all []Finding) {
	for _, w := range v.ours {
		so := ": API servers do not trust the webhook, and " + w.unanswered()
		const fix = "The webhook (or cert-manager) writes the CA within seconds: see its log, and that nothing takes caBundle away again. For a certificate of your own set webhook.caBundle."
		certificates := parse(w.webhook.ClientConfig.CABundle)
		var last, soon time.Time // when the last one ends, and from when on that is to be told
		for _, c := range certificates {
			if !v.Now.Before(c.NotBefore) && c.NotAfter.After(last) {
				last = c.NotAfter
				soon = last.Add(-min(expiring, last.Sub(c.NotBefore)/4))
			}
		}
		switch {
		case len(certificates) == 0:
			all = append(all, finding(CABundleMissing, w.object, "caBundle is empty, or has no certificate in PEM"+so, fix))
		case v.Now.After(last):
			all = append(all, finding(CABundleExpired, w.object, "no certificate in caBundle is valid now"+so, fix))
		case v.Now.After(soon):
			all = append(all, finding(CABundleExpiring, w.object, fmt.Sprintf("the last certificate in caBundle expires at %s; then API servers do not trust the webhook", last.UTC().Format(time.RFC3339)),
				"The webhook and cert-manager renew theirs after two thirds of its life: see their logs. Renew one of your own."))
		}
	}
	return all
}

// unanswered says what follows from a webhook that does not answer.
func (w webhook) unanswered() string {
	if p := w.webhook.FailurePolicy; p != nil && *p == admissionregistration.Ignore {
		return "virtual machines start without being adapted (failurePolicy Ignore)"
	}
	return "virtual machines do not start or migrate (failurePolicy Fail)"
}

// parse leaves out what is no certificate, as API servers do.
func parse(bundle []byte) (all []*x509.Certificate) {
	for block, rest := pem.Decode(bundle); block != nil; block, rest = pem.Decode(rest) {
		if c, err := x509.ParseCertificate(block.Bytes); err == nil {
			all = append(all, c)
		}
	}
	return all
}

func endpoints(v *view) (all []Finding) {
	for _, w := range v.ours {
		ref := w.webhook.ClientConfig.Service
		if ref == nil {
			continue
		}
		object := inventory.Object{Kind: "Service", Namespace: ref.Namespace, Name: ref.Name}
		service := v.service(w)
		if service == nil {
			all = append(all, finding(ServiceMissing, object, "it does not exist, and "+w.object.Name+" names it: "+w.unanswered(), "Upgrade by helm, see docs/install.md."))
			continue
		}
		if service.Spec.Type == corev1.ServiceTypeExternalName {
			continue
		}
		ready, wanted := v.ready(object), 1
		if v.deployment != nil && v.deployment.Spec.Replicas != nil {
			wanted = int(*v.deployment.Spec.Replicas)
		}
		pods := fmt.Sprintf("See why: kubectl describe pods -n %s -l app.kubernetes.io/name=meshvirt, and their logs; a pod that is not ready says why in its probe.", ref.Namespace)
		switch {
		case ready == 0:
			all = append(all, finding(NoEndpoints, object, "no pod of the webhook is ready: "+w.unanswered(), pods))
		case ready < wanted:
			all = append(all, finding(FewEndpoints, object, fmt.Sprintf("%d of %d pods of the webhook are ready", ready, wanted), pods))
		}
	}
	return all
}

// ready counts pods, which may be in the slices of both families.
func (v *view) ready(service inventory.Object) int {
	found := map[string]bool{}
	for _, s := range v.EndpointSlices {
		if s.Namespace != service.Namespace || s.Labels[discovery.LabelServiceName] != service.Name {
			continue
		}
		for _, e := range s.Endpoints {
			if e.Conditions.Ready != nil && !*e.Conditions.Ready {
				continue
			}
			name := strings.Join(e.Addresses, ",")
			if e.TargetRef != nil {
				name = e.TargetRef.Name
			}
			found[name] = true
		}
	}
	return len(found)
}

func releases(v *view) (all []Finding) {
	if v.deployment == nil {
		return nil
	}
	object := inventory.Object{Kind: "Deployment", Namespace: v.deployment.Namespace, Name: v.deployment.Name}
	if v.release != "" && v.release != plan.Release {
		all = append(all, finding(PluginRelease, object, fmt.Sprintf("its release is %s, and that of this command %s: what it says of pods is by its own", v.release, plan.Release),
			"Use kubectl-meshvirt of release "+v.release+"."))
	}
	for _, c := range v.deployment.Spec.Template.Spec.Containers {
		webhook, dataPlane := tag(c.Image), tag(v.config.Image.Name)
		if c.Name == "webhook" && webhook != "" && dataPlane != "" && webhook != dataPlane {
			all = append(all, finding(DataPlaneRelease, object, fmt.Sprintf("the webhook's image is %s, and the data plane's %s: of different releases, the data plane refuses the plan and no virtual machine starts", c.Image, v.config.Image.Name),
				"Set image.webhook.tag and image.dataPlane.tag to the same release."))
		}
	}
	if mode := v.config.DefaultMode; v.oldServer && (mode == plan.NATProxy || mode == plan.TProxy) {
		all = append(all, finding(DefaultModeUnavailable, object, fmt.Sprintf("its default mode %s needs native sidecars, and the API server is %s: mode auto takes its place", mode, v.Server.GitVersion),
			"Upgrade Kubernetes to 1.29 or later, or set defaultMode to auto."))
	}
	return all
}

// tag is an image's, or empty if there is none, or if a digest counts more.
func tag(image string) string {
	if strings.Contains(image, "@") {
		return ""
	}
	_, tag, _ := strings.Cut(image[strings.LastIndex(image, "/")+1:], ":")
	return tag
}

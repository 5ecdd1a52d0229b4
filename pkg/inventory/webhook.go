package inventory

import (
	"slices"

	admissionregistration "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// Ours gives the Services that MeshVirt's configurations name.
func (c *Cluster) Ours() (all []admissionregistration.ServiceReference) {
	for _, configuration := range c.Configurations {
		for _, w := range configuration.Webhooks {
			if w.Name == WebhookName && w.ClientConfig.Service != nil {
				all = append(all, *w.ClientConfig.Service)
			}
		}
	}
	return all
}

// Service gives nil for one that was not read, or is not there.
func (c *Cluster) Service(ref admissionregistration.ServiceReference) *corev1.Service {
	i := slices.IndexFunc(c.Services, func(s corev1.Service) bool { return s.Namespace == ref.Namespace && s.Name == ref.Name })
	if i < 0 {
		return nil
	}
	return &c.Services[i]
}

// Webhook gives the Deployment whose pods the first of MeshVirt's Services leads to; nil if it is not known.
func (c *Cluster) Webhook() *appsv1.Deployment {
	ours := c.Ours()
	if len(ours) == 0 {
		return nil
	}
	service := c.Service(ours[0])
	if service == nil || len(service.Spec.Selector) == 0 {
		return nil
	}
	pods := labels.SelectorFromSet(service.Spec.Selector)
	i := slices.IndexFunc(c.Deployments, func(d appsv1.Deployment) bool {
		return d.Namespace == service.Namespace && pods.Matches(labels.Set(d.Spec.Template.Labels))
	})
	if i < 0 {
		return nil
	}
	return &c.Deployments[i]
}

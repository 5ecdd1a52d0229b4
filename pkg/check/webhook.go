package check

import (
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/meshvirt/meshvirt/pkg/inventory"
	"github.com/meshvirt/meshvirt/pkg/mutate"
	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/templates"
)

// Config is that of the webhook, as far as its Deployment is known; else the release's own.
func Config(c *inventory.Cluster) mutate.Config {
	config := mutate.Config{Image: templates.Image{Name: templates.DefaultImage}}
	if d := c.Webhook(); d != nil {
		config.DefaultMode = plan.Mode(argument(d, "default-mode"))
		if image := argument(d, "data-plane-image"); image != "" {
			config.Image.Name = image
		}
	}
	return config
}

// argument is the value of a flag of the webhook's container, as the chart writes it; empty without it.
func argument(d *appsv1.Deployment, flag string) (value string) {
	for _, c := range d.Spec.Template.Spec.Containers {
		for _, arg := range c.Args {
			if v, ok := strings.CutPrefix(arg, "--"+flag+"="); ok {
				value = v
			}
		}
	}
	return value
}

// NoNativeSidecars is the fact of that name, as far as the server's version and the pods tell.
func NoNativeSidecars(c *inventory.Cluster) bool {
	// By a feature gate 1.28 knows them too: then some pod may have one.
	return c.Server != nil && mutate.NoNativeSidecars(c.Server.Major, c.Server.Minor) && !slices.ContainsFunc(c.Pods, func(pod corev1.Pod) bool {
		return slices.ContainsFunc(pod.Spec.InitContainers, func(c corev1.Container) bool { return c.RestartPolicy != nil })
	})
}

package check

import (
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/version"
	"sigs.k8s.io/yaml"

	"github.com/meshvirt/meshvirt/pkg/inventory"
	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/templates"
)

const installation = `
kind: List
items:
- kind: MutatingWebhookConfiguration
  webhooks: [{name: others.example.com, clientConfig: {service: {namespace: system, name: other}}}, {name: inject.meshvirt.io, clientConfig: {service: {namespace: system, name: meshvirt}}}]
- {kind: Service, metadata: {namespace: system, name: other}, spec: {selector: {app: other}}}
- {kind: Service, metadata: {namespace: system, name: meshvirt}, spec: {selector: {app: meshvirt}}}
- {kind: Deployment, metadata: {namespace: system, name: other}, spec: {template: {metadata: {labels: {app: other}}, spec: {containers: [{args: [--default-mode=off]}]}}}}
- {kind: Deployment, metadata: {namespace: elsewhere, name: meshvirt}, spec: {template: {metadata: {labels: {app: meshvirt}}, spec: {containers: [{args: [--default-mode=off]}]}}}}
- {kind: Deployment, metadata: {namespace: system, name: meshvirt}, spec: {template: {metadata: {labels: {app: meshvirt, more: labels}}, spec: {containers: [{args: [--default-mode=native, --data-plane-image=example.com/plane:2]}]}}}}
`

func TestConfig(t *testing.T) {
	for name, c := range map[string]struct {
		from, to string // what is changed of the installation
		mode     plan.Mode
		image    string
	}{
		"found":         {"", "", plan.Native, "example.com/plane:2"},
		"not set":       {"[--default-mode=native, --data-plane-image=example.com/plane:2]", "[]", "", templates.DefaultImage},
		"not installed": {"inject.meshvirt.io", "else.meshvirt.io", "", templates.DefaultImage},
		"by URL":        {"{service: {namespace: system, name: meshvirt}}", "{url: 'https://example.com'}", "", templates.DefaultImage},
		"no Service":    {"kind: Service, metadata: {namespace: system, name: meshvirt}", "kind: Service, metadata: {namespace: system, name: gone}", "", templates.DefaultImage},
		"no selector":   {"selector: {app: meshvirt}", "selector: {}", "", templates.DefaultImage},
		"no Deployment": {"{app: meshvirt, more: labels}", "{more: labels}", "", templates.DefaultImage},
	} {
		t.Run(name, func(t *testing.T) {
			cluster := &inventory.Cluster{}
			if err := addYAML(cluster, strings.Replace(installation, c.from, c.to, 1)); err != nil {
				t.Fatal(err)
			}
			if got := Config(cluster); got.DefaultMode != c.mode || got.Image.Name != c.image {
				t.Errorf("default mode %q, image %s; want %q, %s", got.DefaultMode, got.Image.Name, c.mode, c.image)
			}
		})
	}
}

func TestNoNativeSidecars(t *testing.T) {
	old := &version.Info{Major: "1", Minor: "28"}
	for name, c := range map[string]struct {
		server *version.Info
		pods   string
		want   bool
	}{
		"not known": {nil, "", false},
		"new":       {&version.Info{Major: "1", Minor: "29"}, "", false},
		"old":       {old, "kind: Pod\nspec: {initContainers: [{name: init}]}", true},
		"by a gate": {old, "kind: Pod\nspec: {initContainers: [{name: init}, {name: proxy, restartPolicy: Always}]}", false},
	} {
		cluster := &inventory.Cluster{Server: c.server}
		if c.pods != "" {
			if err := addYAML(cluster, c.pods); err != nil {
				t.Fatal(err)
			}
		}
		if got := NoNativeSidecars(cluster); got != c.want {
			t.Errorf("%s: %t, want %t", name, got, c.want)
		}
	}
}

func addYAML(c *inventory.Cluster, text string) error {
	b, err := yaml.YAMLToJSON([]byte(text))
	if err != nil {
		return err
	}
	return c.Add(b)
}

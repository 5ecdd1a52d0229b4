package check

import (
	"os"
	"path/filepath"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/meshvirt/meshvirt/pkg/inventory"
)

// Whatever is in a manifest, reading and judging it ends, and each finding is whole.
func FuzzManifest(f *testing.F) {
	files, err := filepath.Glob(vm + "*.yaml")
	if err != nil || len(files) == 0 {
		f.Fatalf("no manifests (%v)", err)
	}
	for _, file := range files[:min(len(files), 4)] {
		b, err := os.ReadFile(file)
		if err == nil {
			b, err = yaml.YAMLToJSON(b)
		}
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte(`{"kind":"VirtualMachine","metadata":{"labels":{"meshvirt.io/inject":"no"}},"spec":{"template":{"metadata":{"annotations":{"meshvirt.io/mode":"x"}},"spec":{"networks":[{"name":"a","pod":{}}]}}}}`))
	f.Add([]byte(`{"kind":"PodList","items":[{"kind":"Pod","status":{"phase":"Running","initContainerStatuses":[{"name":"meshvirt-proxy","state":{"waiting":{"reason":"x"}}}]}}]}`))
	f.Add([]byte(`{"kind":"MutatingWebhookConfiguration","webhooks":[{"name":"inject.meshvirt.io","clientConfig":{"caBundle":"LQ=="},"namespaceSelector":{"matchExpressions":[{"operator":"?"}]}}]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		c := &inventory.Cluster{Now: now}
		if err := c.Add(raw); err != nil {
			return
		}
		for _, found := range Run(c).Findings {
			if found.Severity == "" || found.Message == "" || found.Fix == "" || found.Object.Kind == "" {
				t.Errorf("incomplete: %+v", found)
			}
		}
	})
}

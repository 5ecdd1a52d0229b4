// Package charts_test renders the chart with helm and compares.
package charts_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	admissionregistration "k8s.io/api/admissionregistration/v1"
	"sigs.k8s.io/yaml"

	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/test/golden"
	"github.com/meshvirt/meshvirt/tools"
)

// helm runs the subcommand on the chart. Installed by `go install`, helm takes itself for a client of
// Kubernetes 1.20.
func helm(t *testing.T, args ...string) (stdout, stderr string) {
	t.Helper()
	program, err := tools.Helm()
	if err != nil {
		t.Fatal(err)
	}
	if err := tools.Uses("charts/meshvirt"); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(program, append(args, "--kube-version=1.37.1")...).Output()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return "", string(exit.Stderr)
	} else if err != nil {
		t.Fatal(err)
	}
	return string(out), ""
}

func template(t *testing.T, release string, args ...string) (stdout, stderr string) {
	t.Helper()
	return helm(t, append([]string{"template", release, "meshvirt", "--namespace=meshvirt-system"}, args...)...)
}

func TestLint(t *testing.T) {
	if _, stderr := helm(t, "lint", "--strict", "meshvirt"); stderr != "" {
		t.Error(stderr)
	}
}

func TestGoldenRender(t *testing.T) {
	cases, err := filepath.Glob("testdata/*/values.yaml")
	if err != nil || len(cases) == 0 {
		t.Fatalf("no cases (%v)", err)
	}
	for _, values := range cases {
		dir := filepath.Dir(values)
		t.Run(filepath.Base(dir), func(t *testing.T) {
			got, stderr := template(t, "rel", "--values="+values)
			if stderr != "" {
				t.Fatal(stderr)
			}
			golden.File(t, filepath.Join(dir, "want.yaml"), got)
		})
	}
}

func TestRefusesValues(t *testing.T) {
	for name, c := range map[string]struct{ set, want string }{
		"half a certificate":       {"webhook.certificateSecret=tls", "set both webhook.certificateSecret"},
		"the other half":           {"webhook.caBundle=-----BEGIN CERTIFICATE-----", "set both webhook.certificateSecret"},
		"two certificates":         {"certManager.enabled=true,webhook.certificateSecret=tls", "leave them empty"},
		"an encoded CA":            {"webhook.certificateSecret=tls,webhook.caBundle=LS0t", "at '/webhook/caBundle'"},
		"an unknown mode":          {"defaultMode=teleport", "at '/defaultMode': value must be one of 'auto', "},
		"a long timeout":           {"webhook.timeoutSeconds=31", "at '/webhook/timeoutSeconds': maximum: got 31, want 30"},
		"a policy in lower":        {"webhook.failurePolicy=fail", "value must be one of 'Fail', 'Ignore'"},
		"a short digest":           {"image.dataPlane.digest=sha256:12", "at '/image/dataPlane/digest'"},
		"a class with a capital":   {"priorityClassName=High", "at '/priorityClassName'"},
		"a stolen selector label":  {"commonLabels.app\\.kubernetes\\.io/name=x", "invalid propertyName 'app.kubernetes.io/name'"},
		"a label with a space":     {"podLabels.my team=x", "invalid propertyName 'my team'"},
		"an annotation's bad key":  {"podAnnotations.a/b/c=x", "invalid propertyName 'a/b/c'"},
		"everybody by a mistake":   {"networkPolicy.metricsFrom[0]=", "at '/networkPolicy/metricsFrom/0': got string, want object"},
		"a wordy quantity":         {"dataPlane.proxyResources.limits.memory=lots", "at '/dataPlane/proxyResources/limits/memory'"},
		"memory of no size":        {"dataPlane.rulesResources.limits.memory=0Mi", "at '/dataPlane/rulesResources/limits/memory'"},
		"huge pages for the relay": {"dataPlane.proxyResources.limits.hugepages-2Mi=2Mi", "invalid propertyName 'hugepages-2Mi'"},
		"no interval":              {"serviceMonitor.interval=often", "at '/serviceMonitor/interval'"},
		"a day to shut down":       {"webhook.shutdownDelaySeconds=86400", "at '/webhook/shutdownDelaySeconds'"},
		"a misspelt key":           {"image.dataplane.tag=x", "additional properties 'dataplane' not allowed"},
		"no pods":                  {"replicas=0", "at '/replicas': minimum: got 0, want 1"},
		"a tag that is no string":  {"image.webhook.tag=1", "at '/image/webhook/tag': got number, want string"},
	} {
		t.Run(name, func(t *testing.T) {
			_, stderr := template(t, "rel", "--set="+c.set)
			if !strings.Contains(stderr, c.want) {
				t.Errorf("error is %q, want it to contain %q", stderr, c.want)
			}
		})
	}
}

func read(t *testing.T, file string, into any) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(b, into); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
}

// The modes that the schema takes are those of the plan.
func TestModes(t *testing.T) {
	for _, mode := range plan.Modes {
		if _, stderr := template(t, "rel", "--set=defaultMode="+string(mode)); stderr != "" {
			t.Errorf("mode %s: %s", mode, stderr)
		}
	}
}

func TestVersionIsTheReleaseOfTheSource(t *testing.T) {
	var chart struct{ Version, AppVersion string }
	read(t, "meshvirt/Chart.yaml", &chart)
	if chart.Version != plan.Release || chart.AppVersion != plan.Release {
		t.Errorf("version %q, appVersion %q; want both to be plan.Release, %q", chart.Version, chart.AppVersion, plan.Release)
	}
}

// The API server calls webhook configurations in the order of their names, and MeshVirt must see what
// an injector did: whatever the release is called, its configuration comes last.
func TestComesAfterTheInjectors(t *testing.T) {
	// The names of the meshes' own charts; Istio's revisions append to theirs.
	names := []string{
		"consul-connect-injector",
		"istio-revision-tag-default",
		"istio-sidecar-injector",
		"istio-sidecar-injector-canary-istio-system",
		"kuma-admission-mutating-webhook-configuration",
		"linkerd-proxy-injector-webhook-config",
	}
	for _, release := range []string{"a", "meshvirt", "zzz"} {
		out, stderr := template(t, release, "--show-only=templates/mutatingwebhookconfiguration.yaml")
		if stderr != "" {
			t.Fatal(stderr)
		}
		var config admissionregistration.MutatingWebhookConfiguration
		if err := yaml.UnmarshalStrict([]byte(out), &config); err != nil {
			t.Fatal(err)
		}
		if last := slices.Max(append(names, config.Name)); last != config.Name {
			t.Errorf("release %s: the configuration is called %s, and so comes before %s", release, config.Name, last)
		}
	}
}

package charts_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	psa "k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
	"sigs.k8s.io/yaml"

	"github.com/meshvirt/meshvirt/tools"
)

// unchecked are kinds whose schema no Go module at hand has: those of the Prometheus operator.
const unchecked = "ServiceMonitor,PodMonitor"

// kubeconform gives what it says about files of rendered objects.
func kubeconform(t *testing.T, files ...string) (out string, err error) {
	t.Helper()
	program, schemas, err := tools.Kubeconform()
	if err != nil {
		t.Fatal(err)
	}
	b, err := exec.Command(program, append([]string{
		"-strict", "-skip=" + unchecked, "-schema-location=" + filepath.Join(schemas, "{{.ResourceKind}}{{.KindSuffix}}.json"),
	}, files...)...).CombinedOutput()
	return string(b), err
}

// What is rendered is what Kubernetes and cert-manager know: every kind, field and type.
func TestObjectsFitSchemas(t *testing.T) {
	files, err := filepath.Glob("testdata/*/want.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no rendered files (%v)", err)
	}
	if out, err := kubeconform(t, files...); err != nil {
		t.Errorf("kubeconform: %v\n%s", err, out)
	}
	// And it would have been seen.
	for name, c := range map[string]struct{ file, old, new, want string }{
		"unknown field":      {"built-in", "  replicas: 2", "  replikas: 2", "replikas"},
		"wrong type":         {"built-in", "  replicas: 2", "  replicas: two", "/spec/replicas"},
		"unknown kind":       {"built-in", "kind: PodDisruptionBudget", "kind: PodDisruptionBudged", "could not find schema"},
		"cert-manager field": {"cert-manager", "  secretName: ", "  secret: ", "'secret' not allowed"},
	} {
		t.Run(name, func(t *testing.T) {
			b, err := os.ReadFile(filepath.Join("testdata", c.file, "want.yaml"))
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Contains(b, []byte(c.old)) {
				t.Fatalf("%s has no %q", c.file, c.old)
			}
			file := filepath.Join(t.TempDir(), "broken.yaml")
			if err := os.WriteFile(file, bytes.Replace(b, []byte(c.old), []byte(c.new), 1), 0o644); err != nil {
				t.Fatal(err)
			}
			if out, err := kubeconform(t, file); err == nil || !strings.Contains(out, c.want) {
				t.Errorf("kubeconform says %q (%v), want %q", out, err, c.want)
			}
		})
	}
}

// The webhook's pods run in a namespace that enforces the level restricted, by the judgement of the
// library that API servers use.
func TestPodsAreRestricted(t *testing.T) {
	evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		t.Fatal(err)
	}
	restricted := psa.LevelVersion{Level: psa.LevelRestricted, Version: psa.LatestVersion()}
	evaluate := func(d *appsv1.Deployment) policy.AggregateCheckResult {
		p := d.Spec.Template
		return policy.AggregateCheckResults(evaluator.EvaluatePod(restricted, &p.ObjectMeta, &p.Spec))
	}
	for _, values := range []string{"built-in", "own-certificate", "everything"} {
		d := deployment(t, values)
		if r := evaluate(d); !r.Allowed {
			t.Errorf("%s: %s", values, r.ForbiddenDetail())
		}
		d.Spec.Template.Spec.SecurityContext.SeccompProfile = nil
		if evaluate(d).Allowed {
			t.Errorf("%s: a pod without a seccomp profile is allowed", values)
		}
	}
}

// deployment gives the Deployment of the case.
func deployment(t *testing.T, values string) *appsv1.Deployment {
	t.Helper()
	out, stderr := template(t, "rel", "--show-only=templates/deployment.yaml", "--values=testdata/"+values+"/values.yaml")
	if stderr != "" {
		t.Fatal(stderr)
	}
	d := &appsv1.Deployment{}
	if err := yaml.UnmarshalStrict([]byte(out), d); err != nil {
		t.Fatal(err)
	}
	return d
}

// Time to end a pod is longer than the time that it goes on serving.
func TestGraceOutlastsDelay(t *testing.T) {
	for _, values := range []string{"built-in", "everything"} {
		spec := deployment(t, values).Spec.Template.Spec
		var delay int64
		for _, arg := range spec.Containers[0].Args {
			if m := regexp.MustCompile(`^--shutdown-delay=(\d+)s$`).FindStringSubmatch(arg); m != nil {
				if err := yaml.Unmarshal([]byte(m[1]), &delay); err != nil {
					t.Fatal(err)
				}
			}
		}
		if delay == 0 || *spec.TerminationGracePeriodSeconds <= delay {
			t.Errorf("%s: the delay is %d s and the grace period %d s", values, delay, *spec.TerminationGracePeriodSeconds)
		}
	}
}

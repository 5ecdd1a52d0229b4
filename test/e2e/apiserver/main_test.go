package apiserver

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/go-logr/logr"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/meshvirt/meshvirt/pkg/annotations"
	"github.com/meshvirt/meshvirt/pkg/templates"
	"github.com/meshvirt/meshvirt/tools"
)

// site is a control plane with Istio's injector and the webhook.
type site struct {
	*Cluster
	injector *Injector
	webhook  *Webhook
}

var (
	// One control plane of each release serves the whole package: a start takes as long as all of its tests.
	newest, oldest *site
	// program is cmd/webhook, which takes seconds to link, for all clusters.
	program func() (string, error)
)

func TestMain(m *testing.M) {
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	if os.Getenv(guardedEnv) != "" {
		return m.Run(), nil // TestGuard in the process it starts
	}
	ctrllog.SetLogger(logr.Discard()) // or controller-runtime complains after a while that nobody did
	dir, err := os.MkdirTemp("", "meshvirt-apiserver-")
	if err != nil {
		return 0, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	program = sync.OnceValues(func() (string, error) { return build(dir, "webhook") })
	var group errgroup.Group
	for _, s := range []struct {
		place **site
		name  string
		start func(dir string) (*Cluster, error)
	}{{&newest, "newest", Start}, {&oldest, "oldest", StartOldest}} {
		dir := filepath.Join(dir, s.name)
		if err := os.Mkdir(dir, 0o700); err != nil {
			return 0, err
		}
		*s.place = &site{}
		defer func() {
			if e := (*s.place).stop(); err == nil {
				err = e
			}
		}()
		group.Go(func() error { return (*s.place).start(dir, s.start) })
	}
	if err := group.Wait(); err != nil {
		return 0, err
	}
	return m.Run(), nil
}

func (s *site) start(dir string, start func(dir string) (*Cluster, error)) (err error) {
	ctx := context.Background()
	if s.Cluster, err = start(dir); err != nil {
		return err
	}
	s.program = program
	if s.injector, err = s.StartInjector(ctx); err != nil {
		return err
	}
	s.webhook, err = s.StartWebhook(ctx)
	return err
}

func (s *site) stop() error {
	if s.Cluster == nil {
		return nil
	}
	return s.Stop()
}

// startCluster starts one for a test of its own.
func startCluster(t *testing.T, start func(dir string) (*Cluster, error)) *Cluster {
	t.Helper()
	if err := uses(); err != nil {
		t.Fatal(err)
	}
	c, err := start(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	c.program = program
	t.Cleanup(func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// each runs f against the newest and the oldest API server.
func each(t *testing.T, f func(t *testing.T, s *site)) {
	for _, s := range []*site{newest, oldest} {
		t.Run(s.Version, func(t *testing.T) { f(t, s) })
	}
}

// The chart names the release of the oldest server as the oldest it installs on, and they differ at all.
func TestServersAreTheReleasesSupported(t *testing.T) {
	root, err := tools.Root()
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(root, "charts/meshvirt/Chart.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	minor, _, _ := strings.Cut(strings.TrimPrefix(oldest.Version, "v1."), ".")
	if want := `kubeVersion: ">=1.` + minor + `.0-0"`; !strings.Contains(string(b), want) {
		t.Errorf("Chart.yaml does not have %s, and the oldest server is %s", want, oldest.Version)
	}
	if newest.Version == oldest.Version {
		t.Errorf("both servers are %s", newest.Version)
	}
}

// load reads a recording that is there.
func load(t *testing.T, kubevirt, vm, istio string) *Recording {
	t.Helper()
	r, err := Load(kubevirt, vm, istio)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// vmWeb is the recording for tests that do not depend on one.
func vmWeb(t *testing.T) *Recording {
	t.Helper()
	return load(t, "v1.9.0", "masquerade-istio-ports", "1.31.0-rc.0-native")
}

// vmWeb is the recording for tests that do not depend on one, of a release that the site is for.
func (s *site) vmWeb(t *testing.T) *Recording {
	t.Helper()
	if s == oldest {
		return load(t, "v1.0.1", "masquerade-istio-ports", "1.22.8-classic")
	}
	return vmWeb(t)
}

var (
	namespaces atomic.Int32
	// What TestMain starts is made of these; `go test` watches from the first test on.
	uses = sync.OnceValue(func() error { return tools.Uses("charts/meshvirt", "cmd/webhook", "pkg", "go.sum") })
)

// namespace makes a namespace with the labels (key=value), where r, if not nil, is injected.
func (s *site) namespace(t *testing.T, r *Recording, labels ...string) string {
	t.Helper()
	if err := uses(); err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("test-%d", namespaces.Add(1))
	set := map[string]string{}
	for _, l := range labels {
		k, v, _ := strings.Cut(l, "=")
		set[k] = v
	}
	if r != nil {
		s.injector.Use(name, r)
		maps.Copy(set, Injecting)
	}
	if err := s.Namespace(t.Context(), name, set); err != nil {
		t.Fatal(err)
	}
	return name
}

func (s *site) reviews(t *testing.T) int {
	t.Helper()
	n, err := s.Reviews(t.Context(), WebhookName)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func names(containers []corev1.Container) []string {
	var all []string
	for _, c := range containers {
		all = append(all, c.Name)
	}
	return all
}

// adapted reports whether MeshVirt has put anything into the pod.
func adapted(pod *corev1.Pod) bool {
	return pod.Annotations[annotations.Status] != "" ||
		slices.ContainsFunc(slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers), func(c corev1.Container) bool {
			return strings.HasPrefix(c.Name, "meshvirt-")
		})
}

// samePod compares what admission made of two pods: all but what the API server makes up for each.
var samePod = cmp.Options{
	quantities,
	cmpopts.EquateEmpty(),
	cmpopts.IgnoreFields(metav1.ObjectMeta{}, "Name", "Namespace", "UID", "ResourceVersion", "CreationTimestamp", "ManagedFields"),
	// The token's volume has a random name, kube-api-access-xxxxx.
	cmp.Transformer("token", func(name string) string {
		if strings.HasPrefix(name, "kube-api-access-") {
			return "kube-api-access"
		}
		return name
	}),
}

// isOurs reports whether MeshVirt injects a container of that name.
func isOurs(name string) bool { return name == templates.RulesName || name == templates.ProxyName }

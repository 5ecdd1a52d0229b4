package apiserver

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/go-logr/logr"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/meshvirt/meshvirt/pkg/annotations"
	"github.com/meshvirt/meshvirt/pkg/templates"
	"github.com/meshvirt/meshvirt/tools"
)

// One control plane serves the whole package: a start takes as long as all of its tests.
var (
	cluster  *Cluster
	injector *Injector
	webhook  *Webhook
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
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "meshvirt-apiserver-")
	if err != nil {
		return 0, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if cluster, err = Start(dir); err != nil {
		return 0, err
	}
	defer func() {
		if e := cluster.Stop(); err == nil {
			err = e
		}
	}()
	if injector, err = cluster.StartInjector(ctx); err != nil {
		return 0, err
	}
	if webhook, err = cluster.StartWebhook(ctx); err != nil {
		return 0, err
	}
	return m.Run(), nil
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

var (
	namespaces atomic.Int32
	// What TestMain starts is made of these; `go test` watches from the first test on.
	uses = sync.OnceValue(func() error { return tools.Uses("charts/meshvirt", "cmd/webhook", "pkg", "go.sum") })
)

// namespace makes a namespace with the labels (key=value), where r, if not nil, is injected.
func namespace(t *testing.T, r *Recording, labels ...string) string {
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
		injector.Use(name, r)
		maps.Copy(set, Injecting)
	}
	if err := cluster.Namespace(t.Context(), name, set); err != nil {
		t.Fatal(err)
	}
	return name
}

func reviews(t *testing.T) int {
	t.Helper()
	n, err := cluster.Reviews(t.Context(), WebhookName)
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

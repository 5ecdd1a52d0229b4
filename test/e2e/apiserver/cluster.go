// Package apiserver runs a real etcd and kube-apiserver, Istio's injector as recorded, and MeshVirt's
// real webhook behind the configuration that the chart renders. Pods are admitted as in a cluster; no
// controller and no node runs, so they stay pending.
package apiserver

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/version"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"

	"github.com/meshvirt/meshvirt/tools"
)

// patience bounds every wait in this package. A start takes 3 seconds on an idle machine; the rest is
// for machines that compile at the same time.
const patience = 2 * time.Minute

// poll is the pause between two looks at a condition that is waited for.
const poll = 20 * time.Millisecond

// Cluster is a running etcd and kube-apiserver, on ports of the loopback address that nobody else uses.
type Cluster struct {
	// Client is an administrator's. It reads without a cache.
	Client client.Client
	// Version is the release of the API server, such as "v1.37.1".
	Version string

	warnings  warnings
	dir       string
	programs  []string // kube-apiserver, etcd
	env       *envtest.Environment
	rest      *rest.RESTClient
	authority *authority
	program   func() (string, error)

	mu      sync.Mutex
	logs    []*os.File
	cleanup []func() error
	release func() // of the guard
}

// Start starts both programs. They, and what the methods of the cluster start, write their logs and
// files to dir, which must exist and is left alone by Stop.
func Start(dir string) (*Cluster, error) {
	programs, err := tools.ControlPlane()
	if err != nil {
		return nil, err
	}
	return start(dir, filepath.Join(programs, "kube-apiserver"), filepath.Join(programs, "etcd"))
}

// StartOldest is Start with the kube-apiserver of the oldest Kubernetes release that the chart installs on.
func StartOldest(dir string) (*Cluster, error) {
	programs, err := tools.ControlPlane()
	if err != nil {
		return nil, err
	}
	server, err := tools.OldestAPIServer()
	if err != nil {
		return nil, err
	}
	return start(dir, server, filepath.Join(programs, "etcd"))
}

// start is Start with these programs, after configure.
func start(dir, serverProgram, etcdProgram string, configure ...func(*Cluster, *envtest.APIServer) error) (_ *Cluster, err error) {
	c := &Cluster{dir: dir, programs: []string{serverProgram, etcdProgram}}
	defer func() {
		if err != nil {
			_ = c.Stop()
		}
	}()
	c.program = sync.OnceValues(func() (string, error) { return build(dir, "webhook") })
	if c.authority, err = newAuthority(); err != nil {
		return nil, err
	}
	c.env = &envtest.Environment{
		UseExistingCluster:       new(bool), // whatever the environment says
		ControlPlaneStartTimeout: patience,
		ControlPlaneStopTimeout:  patience,
	}
	etcdLog, err := c.log("etcd.log")
	if err != nil {
		return nil, err
	}
	c.env.ControlPlane.Etcd = &envtest.Etcd{Path: etcdProgram, Out: etcdLog, Err: etcdLog, DataDir: filepath.Join(dir, "etcd")}
	serverLog, err := c.log("kube-apiserver.log")
	if err != nil {
		return nil, err
	}
	server := c.env.ControlPlane.GetAPIServer()
	server.Path, server.CertDir = serverProgram, filepath.Join(dir, "kube-apiserver")
	server.Out, server.Err = serverLog, serverLog
	if err := errors.Join(os.Mkdir(c.env.ControlPlane.Etcd.DataDir, 0o700), os.Mkdir(server.CertDir, 0o700)); err != nil {
		return nil, err
	}
	// envtest switches ServiceAccount admission off. It belongs to the picture: it mounts tokens into
	// every container, those of webhooks included, since it runs again after them.
	server.Configure().Disable("disable-admission-plugins")
	for _, f := range configure {
		if err := f(c, server); err != nil {
			return nil, err
		}
	}

	config, err := c.env.Start()
	if err != nil {
		return nil, fmt.Errorf("start control plane: %w (logs in %s)", err, dir)
	}
	started, err := children(c.programs...)
	if err != nil {
		return nil, err
	}
	if c.release, err = guard(started...); err != nil {
		return nil, err
	}
	config.QPS = -1 // no limit of the client's own
	config.WarningHandler = &c.warnings
	if c.Client, err = client.New(config, client.Options{Scheme: scheme.Scheme}); err != nil {
		return nil, err
	}
	config.GroupVersion = &corev1.SchemeGroupVersion
	config.NegotiatedSerializer = scheme.Codecs
	if c.rest, err = rest.RESTClientFor(config); err != nil {
		return nil, err
	}
	if c.Version, err = c.version(); err != nil {
		return nil, fmt.Errorf("ask the API server for its version: %w", err)
	}
	return c, nil
}

func (c *Cluster) version() (string, error) {
	b, err := c.rest.Get().AbsPath("/version").DoRaw(context.Background())
	if err != nil {
		return "", err
	}
	var v version.Info
	err = json.Unmarshal(b, &v)
	return v.GitVersion, err
}

// RestartAPIServer kills kube-apiserver, starts it again at the same address, and returns when it is
// ready. etcd goes on. (Ended in order, it would wait a minute for the watches of webhooks.)
func (c *Cluster) RestartAPIServer() error {
	server := c.env.ControlPlane.GetAPIServer()
	pids, err := children(c.programs...)
	if err != nil {
		return err
	}
	port := "--secure-port=" + server.Port // of this cluster, not of another in this process
	for _, pid := range pids {
		args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil || !slices.Contains(strings.Split(string(args), "\x00"), port) {
			continue
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			return fmt.Errorf("kill kube-apiserver: %w", err)
		}
	}
	if err := server.Stop(); err != nil {
		return fmt.Errorf("stop kube-apiserver: %w", err)
	}
	if err := server.Start(); err != nil {
		return fmt.Errorf("start kube-apiserver again: %w", err)
	}
	started, err := children(c.programs...)
	if err != nil {
		return err
	}
	c.release()
	c.release, err = guard(started...)
	return err
}

// log opens a log file, to be added to, that Stop closes.
func (c *Cluster) log(name string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(c.dir, name), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.logs = append(c.logs, f)
	return f, nil
}

// atStop adds to what Stop does first.
func (c *Cluster) atStop(f func() error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cleanup = append(c.cleanup, f)
}

// Stop ends everything that was started, also after half a start.
func (c *Cluster) Stop() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var first error
	keep := func(err error) {
		if err != nil && first == nil {
			first = err
		}
	}
	for _, f := range c.cleanup {
		keep(f())
	}
	if c.env != nil {
		keep(c.env.Stop())
	}
	if c.release != nil {
		c.release()
	}
	for _, f := range c.logs {
		keep(f.Close())
	}
	c.cleanup, c.env, c.logs, c.release = nil, nil, nil, nil
	return first
}

// Namespace makes a namespace, if it is not there, with the service account that admission wants and that a controller
// makes in a whole cluster.
func (c *Cluster) Namespace(ctx context.Context, name string, labels map[string]string) error {
	for _, object := range []client.Object{
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}},
		&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default", Namespace: name}},
	} {
		if err := c.Client.Create(ctx, object); client.IgnoreAlreadyExists(err) != nil {
			return fmt.Errorf("make namespace %s: %w", name, err)
		}
	}
	return nil
}

// Admit creates a copy of the pod in the namespace, as virt-controller would, and gives back what the
// API server stored. With client.DryRunAll nothing is stored.
func (c *Cluster) Admit(ctx context.Context, namespace string, pod *corev1.Pod, options ...client.CreateOption) (*corev1.Pod, error) {
	pod = pod.DeepCopy()
	pod.Namespace = namespace
	if err := c.Client.Create(ctx, pod, options...); err != nil {
		return nil, err
	}
	return pod, nil
}

// Warnings takes the warnings that came with answers of the API server since the last call.
func (c *Cluster) Warnings() []string {
	c.warnings.Lock()
	defer c.warnings.Unlock()
	list := c.warnings.list
	c.warnings.list = nil
	return list
}

// warnings collects what client-go would log.
type warnings struct {
	sync.Mutex
	list []string
}

// HandleWarningHeader implements rest.WarningHandler.
func (w *warnings) HandleWarningHeader(_ int, _, text string) {
	w.Lock()
	defer w.Unlock()
	w.list = append(w.list, text)
}

// Reviews gives how many reviews of the webhook the API server has asked for so far, from its own
// metrics: it knows what it did not send, too.
func (c *Cluster) Reviews(ctx context.Context, webhook string) (int, error) {
	stream, err := c.rest.Get().AbsPath("/metrics").Stream(ctx)
	if err != nil {
		return 0, fmt.Errorf("read metrics of the API server: %w", err)
	}
	defer func() { _ = stream.Close() }()
	sum := 0.0
	lines := bufio.NewScanner(stream)
	for lines.Scan() {
		line := lines.Text()
		if !strings.HasPrefix(line, "apiserver_admission_webhook_request_total{") || !strings.Contains(line, `name="`+webhook+`"`) {
			continue
		}
		v, err := strconv.ParseFloat(line[strings.LastIndexByte(line, ' ')+1:], 64)
		if err != nil {
			return 0, fmt.Errorf("read metric %q: %w", line, err)
		}
		sum += v
	}
	return int(sum), lines.Err()
}

// awaitReview creates the pod in dry runs until the API server sends it to the webhook: it learns of a
// new configuration a moment after it is stored.
func (c *Cluster) awaitReview(ctx context.Context, webhook, namespace string, pod *corev1.Pod) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	before, err := c.Reviews(ctx, webhook)
	if err != nil {
		return err
	}
	for {
		// Whether the pod is admitted is not the question here.
		_, admitErr := c.Admit(ctx, namespace, pod, client.DryRunAll)
		now, err := c.Reviews(ctx, webhook)
		if err != nil {
			return err
		}
		if now > before {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the API server does not call webhook %s: %w", webhook, errors.Join(ctx.Err(), admitErr))
		case <-time.After(poll):
		}
	}
}

// probePod is the least pod that the API server takes.
func probePod(labels map[string]string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "probe-", Labels: labels},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "probe", Image: "probe"}}},
	}
}

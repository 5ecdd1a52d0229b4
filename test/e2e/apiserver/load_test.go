package apiserver

import (
	"errors"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	// loadPods are created at loadRate a second.
	loadPods = 2000
	loadRate = 50
	// loadThreads is how many pods are in the making at a time: virt-controller makes those of virtual machines in ten
	// threads (its --vmi-controller-threads). Where the machine is busy, the rate falls and not all come at once.
	loadThreads = 10
	// endpointLag is how long connections still go to a replica that was told to end: the kubelet
	// signals it while the Service's endpoints are still on their way to the nodes.
	endpointLag = 2 * time.Second
)

// 2,000 VMs start at 50 a second through everything that an operator does to a webhook: a rolling
// restart of both replicas, a rotation of the CA, a restart of the API server. None is refused, and
// none starts unadapted.
func TestLoad(t *testing.T) {
	ctx := t.Context()
	c := startCluster(t, Start)
	istio, err := c.StartInjector(ctx)
	if err != nil {
		t.Fatal(err)
	}
	vm := vmWeb(t)
	const here = "vms"
	istio.Use(here, vm)
	if err := errors.Join(c.Namespace(ctx, here, Injecting), c.Namespace(ctx, WebhookNamespace, nil)); err != nil {
		t.Fatal(err)
	}
	service := &frontEnd{}
	t.Cleanup(service.close)
	args := install(t, c, service)
	kubeconfig := serviceAccountConfig(t, c)
	start := func() *replica {
		r := startReplica(t, c, kubeconfig, args)
		r.awaitReady(t)
		return r
	}
	replicas := []*replica{start(), start()}
	service.use(replicas...)
	if err := c.awaitReview(ctx, WebhookName, here, vm.Pod); err != nil {
		t.Fatal(err)
	}

	var count struct {
		sync.Mutex
		admitted, failed, unadapted int
	}
	create := func() {
		pod, err := c.Admit(ctx, here, vm.Pod)
		count.Lock()
		defer count.Unlock()
		count.admitted++
		switch {
		case err != nil:
			if count.failed++; count.failed < 5 {
				t.Errorf("pod %d: %v", count.admitted, err)
			}
		case !adapted(pod):
			count.unadapted++
		}
	}
	// Clients of a highly available API server are led to one that is ready. Here is one alone: no pod is created while
	// it restarts, and afterwards they come at the same rate, not all at once.
	var ready sync.RWMutex
	events := map[int]func(){
		loadPods / 10: func() { // a rolling update: a new replica first, then an old one goes, twice
			for i, old := range replicas {
				replicas[i] = start()
				service.use(append(replicas[:len(replicas):len(replicas)], old)...)
				old.signal(t, syscall.SIGTERM)
				time.Sleep(endpointLag)
				service.use(replicas...)
			}
		},
		loadPods / 2: func() {
			secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: WebhookNamespace, Name: caSecretName}}
			if err := c.Client.Delete(ctx, secret); err != nil {
				t.Error(err)
			}
		},
		loadPods * 8 / 10: func() {
			ready.Lock()
			defer ready.Unlock()
			if err := c.RestartAPIServer(); err != nil {
				t.Error(err)
			}
		},
	}
	var creating errgroup.Group
	creating.SetLimit(loadThreads)
	var wg sync.WaitGroup
	tick := time.NewTicker(time.Second / loadRate)
	defer tick.Stop()
	for i := range loadPods {
		<-tick.C
		ready.RLock()
		creating.Go(func() error {
			defer ready.RUnlock()
			create()
			return nil
		})
		if event := events[i]; event != nil {
			wg.Go(event)
		}
	}
	wg.Wait()
	_ = creating.Wait() // create counts what fails
	if count.admitted != loadPods || count.failed+count.unadapted > 0 {
		t.Errorf("of %d pods (want %d) %d were refused and %d not adapted, want none", count.admitted, loadPods, count.failed, count.unadapted)
	}
	t.Logf("%d pods, %d connections to the webhook", count.admitted, service.connections.Load())
}

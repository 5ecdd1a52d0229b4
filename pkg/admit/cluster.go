package admit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"github.com/meshvirt/meshvirt/pkg/kubevirt"
	"github.com/meshvirt/meshvirt/pkg/mutate"
)

// budget is how long a pod's creation waits for the one question that its review may ask. It is well
// below the chart's time-out of a review, 5 s.
const budget = time.Second

// absentFor is for how long nobody asks for VMIs again once the API server did not serve them. Whoever
// has no KubeVirt does not pay a question for each pod.
const absentFor = time.Second

// unlimited takes client-go's limit of queries away. Its default, 5 a second, would make a drained
// node's pods wait for each other; the API server has limits itself.
const unlimited = -1

var (
	vmiResource = schema.GroupVersionResource{Group: kubevirt.Group, Version: "v1", Resource: "virtualmachineinstances"}
	nsResource  = schema.GroupVersionResource{Version: "v1", Resource: "namespaces"}
)

// Cluster is what the API server knows beyond a pod: the VirtualMachineInstance that owns it, the labels
// of its namespace. It also takes events. Both are kept by watches, of which no review waits.
type Cluster struct {
	vmis, namespaces cache.SharedIndexInformer

	client dynamic.Interface
	server discovery.ServerVersionInterface
	old    atomic.Bool // whether it knows no native sidecars
	budget time.Duration
	absent atomic.Int64 // until when VMIs are taken not to be served, in Unix nanoseconds
	asked  *prometheus.CounterVec
	events *events
}

// NewCluster gives a Cluster that asks nothing before Start. It registers its metrics with registry.
func NewCluster(config *rest.Config, log *slog.Logger, registry prometheus.Registerer) (*Cluster, error) {
	config = rest.CopyConfig(config)
	config.QPS = unlimited
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("make a client for VMIs: %w", err)
	}
	// The API server sends of namespaces no more than their metadata.
	meta, err := metadata.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("make a client for namespaces: %w", err)
	}
	typed, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("make a client for events: %w", err)
	}
	c := &Cluster{client: client, server: typed.Discovery(), budget: budget, events: newEvents(typed.CoreV1(), log), asked: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "meshvirt_facts_total",
		Help: "Pods whose VirtualMachineInstance was looked up, by source: cache, get, or none if it is not known.",
	}, []string{"source"})}
	registry.MustRegister(c.asked, c.events.count)
	for _, source := range []string{sourceCache, sourceGet, sourceNone} {
		c.asked.WithLabelValues(source)
	}

	vmis, namespaces := client.Resource(vmiResource), meta.Resource(nsResource)
	c.vmis, err = inform(log, vmiResource, keepVMI,
		func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return vmis.List(ctx, o) }, vmis.Watch)
	if err != nil {
		return nil, err
	}
	c.namespaces, err = inform(log, nsResource, keepLabels,
		func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			return namespaces.List(ctx, o)
		}, namespaces.Watch)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// Start begins to watch and to write events, and returns. All of it ends with ctx.
func (c *Cluster) Start(ctx context.Context) {
	go c.vmis.RunWithContext(ctx)
	go c.namespaces.RunWithContext(ctx)
	go c.events.run(ctx)
	go wait.UntilWithContext(ctx, c.askVersion, versionInterval)
}

// versionInterval is how often the API server's version is asked for: clusters are upgraded under us.
const versionInterval = time.Minute

// askVersion keeps what was known if there is no answer.
func (c *Cluster) askVersion(context.Context) {
	if v, err := c.server.ServerVersion(); err == nil {
		c.old.Store(mutate.NoNativeSidecars(v.Major, v.Minor))
	}
}

// inform gives an informer that keeps what keep leaves of each object. If the resource cannot be
// watched, because KubeVirt is not installed yet or a right is missing, it tries again, at least every
// minute, for as long as it runs, and logs each reason once.
func inform(log *slog.Logger, resource schema.GroupVersionResource, keep cache.TransformFunc,
	list func(context.Context, metav1.ListOptions) (runtime.Object, error), watch func(context.Context, metav1.ListOptions) (watch.Interface, error),
) (cache.SharedIndexInformer, error) {
	i := cache.NewSharedIndexInformerWithOptions(
		&cache.ListWatch{ListWithContextFunc: list, WatchFuncWithContext: watch}, nil,
		cache.SharedIndexInformerOptions{ObjectDescription: resource.GroupResource().String()})
	if err := i.SetTransform(keep); err != nil {
		return nil, err
	}
	var once reasons
	err := i.SetWatchErrorHandlerWithContext(func(ctx context.Context, _ *cache.Reflector, err error) {
		// A watch that ends, or is too old to go on, is begun again: that is how watches work.
		if err == nil || ctx.Err() != nil || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || apierrors.IsResourceExpired(err) || apierrors.IsGone(err) {
			return
		}
		if once.isNew(err.Error()) {
			log.Warn("a resource cannot be watched; trying on", "resource", resource.GroupResource().String(), "err", err)
		}
	})
	return i, err
}

// reasons tells new ones from those that were told before.
type reasons struct {
	mu   sync.Mutex
	last string
}

func (r *reasons) isNew(reason string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	was := r.last
	r.last = reason
	return was != reason
}

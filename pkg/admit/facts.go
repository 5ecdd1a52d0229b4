package admit

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/meshvirt/meshvirt/pkg/annotations"
	"github.com/meshvirt/meshvirt/pkg/kubevirt"
	"github.com/meshvirt/meshvirt/pkg/mutate"
)

// Where a VMI came from, as the metric's label "source" gives it.
const (
	sourceCache = "cache"
	sourceGet   = "get"  // the watch did not have it yet
	sourceNone  = "none" // it is not known; the pod alone decided
)

// knownVMI is what the cache keeps of a VMI: less than a kilobyte, of some ten. Of its metadata
// there is what a cache and an owner reference need.
type knownVMI struct {
	metav1.ObjectMeta
	vmi *kubevirt.VMI
	err error // why it cannot be read
}

// keepVMI is the cache's transform. It never fails, which would stop the watch for one odd VMI.
func keepVMI(object any) (any, error) {
	u, ok := object.(*unstructured.Unstructured)
	if !ok { // kept before
		return object, nil
	}
	return readVMI(u), nil
}

func readVMI(u *unstructured.Unstructured) *knownVMI {
	known := &knownVMI{ObjectMeta: metav1.ObjectMeta{
		Namespace: u.GetNamespace(), Name: u.GetName(), UID: u.GetUID(), ResourceVersion: u.GetResourceVersion(),
	}}
	b, err := u.MarshalJSON()
	if err != nil {
		known.err = err
		return known
	}
	if known.vmi, known.err = kubevirt.ParseVMI(b); known.err == nil {
		maps.DeleteFunc(known.vmi.Annotations, func(key, _ string) bool { return !strings.HasPrefix(key, annotations.Domain) })
	}
	return known
}

// keepLabels is the transform of the namespaces' cache.
func keepLabels(object any) (any, error) {
	m, ok := object.(*metav1.PartialObjectMetadata)
	if !ok {
		return object, nil
	}
	return &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Name: m.Name, ResourceVersion: m.ResourceVersion, Labels: m.Labels}}, nil
}

// vmiOf gives the reference to the VMI that controls the pod, of any version; nil if none does.
func vmiOf(pod *corev1.Pod) *metav1.OwnerReference {
	owner := metav1.GetControllerOfNoCopy(pod)
	if owner == nil || !kubevirt.IsVMI(owner.APIVersion, owner.Kind) {
		return nil
	}
	return owner
}

// Facts gives what is known beyond the pod, which is to be created in the namespace. It asks the API
// server, for at most a second, only if the pod's VMI is not in the cache.
func (c *Cluster) Facts(namespace string, pod *corev1.Pod) mutate.Facts {
	if c == nil {
		return mutate.Facts{}
	}
	facts := mutate.Facts{NamespaceLabels: c.labels(namespace), NoNativeSidecars: c.old.Load()}
	owner := vmiOf(pod)
	if owner == nil {
		return facts
	}
	vmi, source, err := c.vmi(namespace, owner)
	c.asked.WithLabelValues(source).Inc()
	if facts.VMI = vmi; err != nil {
		facts.Unknown = err.Error()
	}
	return facts
}

// labels gives nil if the namespace is not known, and an empty map if it has none.
func (c *Cluster) labels(namespace string) map[string]string {
	object, ok, err := c.namespaces.GetStore().GetByKey(namespace)
	if err != nil || !ok {
		return nil
	}
	m, ok := object.(*metav1.PartialObjectMetadata)
	if !ok {
		return nil
	}
	if m.Labels == nil {
		return map[string]string{}
	}
	return m.Labels
}

func (c *Cluster) vmi(namespace string, owner *metav1.OwnerReference) (vmi *kubevirt.VMI, source string, err error) {
	object, ok, _ := c.vmis.GetStore().GetByKey(namespace + "/" + owner.Name)
	known, is := object.(*knownVMI)
	source = sourceCache
	if !ok || !is || known.UID != owner.UID { // another UID: one of the same name from before
		source = sourceGet
		if known, err = c.get(namespace, owner.Name); err != nil {
			return nil, sourceNone, err
		}
	}
	switch {
	case known.UID != owner.UID:
		return nil, sourceNone, kubevirt.OtherUID(namespace, owner.Name, string(known.UID), string(owner.UID))
	case known.err != nil:
		return nil, sourceNone, known.err
	}
	return known.vmi, source, nil
}

// get asks the API server. Its error says in words for users why there is no VMI.
func (c *Cluster) get(namespace, name string) (*knownVMI, error) {
	if time.Now().UnixNano() < c.absent.Load() {
		return nil, kubevirt.ErrNotServed
	}
	ctx, cancel := context.WithTimeout(context.Background(), c.budget)
	defer cancel()
	u, err := c.client.Resource(vmiResource).Namespace(namespace).Get(ctx, name, metav1.GetOptions{})
	var timeout net.Error
	switch {
	case err == nil:
		return readVMI(u), nil
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return nil, fmt.Errorf("the API server did not answer within %s", c.budget)
	case apierrors.IsNotFound(err) && apierrors.HasStatusCause(err, metav1.CauseTypeUnexpectedServerResponse):
		// What the API server says of a path that nobody serves is no Status.
		c.absent.Store(time.Now().Add(absentFor).UnixNano())
		return nil, kubevirt.ErrNotServed
	case apierrors.IsNotFound(err):
		return nil, kubevirt.NotFound(namespace, name)
	}
	return nil, err
}

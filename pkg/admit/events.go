package admit

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	clientv1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/record"

	"github.com/meshvirt/meshvirt/pkg/annotations"
	"github.com/meshvirt/meshvirt/pkg/decision"
	"github.com/meshvirt/meshvirt/pkg/mutate"
	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/review"
)

// Reasons of the events on VirtualMachineInstances.
const (
	eventJoined  = "MeshJoined"
	eventSkipped = "MeshSkipped"
	eventRefused = "MeshRefused"
)

// What became of an event, as the metric's label "result" gives it.
const (
	eventWritten = "written"
	eventLimited = "limited" // many of the same VMI, or the same again within repeatWindow
	eventDropped = "dropped" // the queue was full
	eventFailed  = "failed"  // the API server did not take it
)

const (
	// eventQueue is how many events may wait, a node's VMs many times over: 1 MB.
	eventQueue = 1000
	// eventTimeout bounds the writing of one event.
	eventTimeout = 5 * time.Second
	// repeatWindow is for how long an event that says the same of the same VMI is the same: a pod may be
	// reviewed again within the API server's one request (reinvocationPolicy), where nothing but the
	// content tells the reviews from those of two pods. virt-controller's next pod takes longer.
	repeatWindow = 10 * time.Second
	// maxEventMessage is what the API server takes of an event's note, in bytes.
	maxEventMessage = 1024
	// maxEventName leaves room for a suffix below the 253 characters of an object's name.
	maxEventName = 220
)

// events writes events without making anybody wait: what does not fit into the queue is dropped.
type events struct {
	client clientv1.EventsGetter
	log    *slog.Logger
	count  *prometheus.CounterVec
	queue  chan *corev1.Event
}

func newEvents(client clientv1.EventsGetter, log *slog.Logger) *events {
	e := &events{client: client, log: log, queue: make(chan *corev1.Event, eventQueue), count: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "meshvirt_events_total",
		Help: "Events on VirtualMachineInstances by result: written, limited, dropped or failed.",
	}, []string{"result"})}
	for _, result := range []string{eventWritten, eventLimited, eventDropped, eventFailed} {
		e.count.WithLabelValues(result)
	}
	return e
}

// Report puts the event on the pod's VMI that the outcome of a review calls for, if any, into the queue.
func (c *Cluster) Report(req *review.Request, pod *corev1.Pod, report mutate.Report, result string, denial error) {
	if c == nil || req.DryRun {
		return
	}
	owner := vmiOf(pod)
	if owner == nil {
		return
	}
	e := eventOf(pod, report, result, denial)
	if e == nil {
		return
	}
	e.InvolvedObject = corev1.ObjectReference{
		APIVersion: owner.APIVersion, Kind: owner.Kind, Namespace: req.Namespace, Name: owner.Name, UID: owner.UID,
	}
	c.events.add(e)
}

// eventOf says what users see of a review in `kubectl describe vmi`; nil if it is not worth an event.
func eventOf(pod *corev1.Pod, report mutate.Report, result string, denial error) *corev1.Event {
	_, before := pod.Annotations[annotations.Status]
	switch {
	case result == resultDenied:
		return &corev1.Event{Type: corev1.EventTypeWarning, Reason: eventRefused, Message: denial.Error()}
	case result == resultErrored || before: // an earlier review of an adapted pod has told
		return nil
	case report.Mode != plan.Off:
		return &corev1.Event{Type: corev1.EventTypeNormal, Reason: eventJoined, Message: messageOf(report, fmt.Sprintf("Joined %s in mode %s", report.Mesh, report.Mode))}
	case report.Reason != decision.NotVirtLauncher && (report.Mesh != "" || asksForUs(pod)):
		what := "Left alone"
		if report.Mesh != "" {
			what = fmt.Sprintf("Left as %s made it", report.Mesh)
		}
		return &corev1.Event{Type: corev1.EventTypeNormal, Reason: eventSkipped, Message: messageOf(report, what)}
	}
	return nil
}

// messageOf says why, and warns: the API server's answer has the warnings as well, but its reader is
// virt-controller.
func messageOf(report mutate.Report, what string) string {
	message := fmt.Sprintf("%s (%s). %s", what, report.Reason, decision.ReasonTexts[report.Reason])
	for _, w := range report.Warnings {
		message += " Warning: " + strings.TrimSuffix(w, ".") + "."
	}
	return message
}

func asksForUs(pod *corev1.Pod) bool {
	for key := range maps.Keys(pod.Annotations) {
		if strings.HasPrefix(key, annotations.Domain) {
			return true
		}
	}
	return false
}

func (e *events) add(event *corev1.Event) {
	now := metav1.Now()
	event.Namespace = event.InvolvedObject.Namespace
	event.Name = fmt.Sprintf("%s.%x", strings.TrimRight(event.InvolvedObject.Name[:min(len(event.InvolvedObject.Name), maxEventName)], "-."), now.UnixNano())
	event.FirstTimestamp, event.LastTimestamp, event.Count = now, now, 1
	event.Source.Component, event.ReportingController = "meshvirt-webhook", "meshvirt.io/webhook"
	if len(event.Message) > maxEventMessage {
		event.Message = strings.ToValidUTF8(event.Message[:maxEventMessage-len("...")], "") + "..."
	}
	select {
	case e.queue <- event:
	default:
		e.count.WithLabelValues(eventDropped).Inc()
	}
}

// run writes what is in the queue. client-go's correlator makes one of events that are alike, and stops
// floods: virt-controller tries a pod that was refused again and again.
func (e *events) run(ctx context.Context) {
	correlator := record.NewEventCorrelatorWithOptions(record.CorrelatorOptions{})
	written := map[said]time.Time{}
	var once reasons
	for {
		select {
		case <-ctx.Done():
			return
		case event := <-e.queue:
			if repeated(written, event) {
				e.count.WithLabelValues(eventLimited).Inc()
				continue
			}
			result, err := e.write(ctx, correlator, event)
			e.count.WithLabelValues(result).Inc()
			if err != nil && once.isNew(err.Error()) {
				e.log.Warn("an event was not written", "namespace", event.Namespace, "name", event.InvolvedObject.Name, "reason", event.Reason, "err", err)
			}
		}
	}
}

// said is what makes an event the same as another.
type said struct {
	vmi             types.UID
	reason, message string
}

// repeated reports whether the event was there within repeatWindow, and notes it.
func repeated(written map[said]time.Time, event *corev1.Event) bool {
	now := event.LastTimestamp.Time
	maps.DeleteFunc(written, func(_ said, at time.Time) bool { return now.Sub(at) > repeatWindow })
	key := said{event.InvolvedObject.UID, event.Reason, event.Message}
	_, ok := written[key]
	if !ok {
		written[key] = now
	}
	return ok
}

func (e *events) write(ctx context.Context, correlator *record.EventCorrelator, event *corev1.Event) (result string, err error) {
	correlated, err := correlator.EventCorrelate(event)
	if err != nil {
		return eventFailed, err
	}
	if correlated.Skip {
		return eventLimited, nil
	}
	ctx, cancel := context.WithTimeout(ctx, eventTimeout)
	defer cancel()
	sink := e.client.Events(event.Namespace)
	var now *corev1.Event
	err = apierrors.NewNotFound(corev1.Resource("events"), "")
	if correlated.Event.Count > 1 {
		now, err = sink.PatchWithEventNamespaceWithContext(ctx, correlated.Event, correlated.Patch)
	}
	if apierrors.IsNotFound(err) { // the first, or the earlier one has expired
		correlated.Event.ResourceVersion = ""
		now, err = sink.CreateWithEventNamespaceWithContext(ctx, correlated.Event)
	}
	if err != nil {
		return eventFailed, fmt.Errorf("write event: %w", err)
	}
	correlator.UpdateState(now)
	return eventWritten, nil
}

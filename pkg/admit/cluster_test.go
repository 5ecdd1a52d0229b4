package admit

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"github.com/meshvirt/meshvirt/pkg/decision"
	"github.com/meshvirt/meshvirt/pkg/kubevirt"
	"github.com/meshvirt/meshvirt/pkg/mutate"
	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/review"
	"github.com/meshvirt/meshvirt/test/corpus"
)

// What works is tested beside a real API server, in test/e2e/apiserver. Here is what such a server does not do when
// asked: hang, or have nothing.

// clusterOf gives a Cluster of an API server that answers as told, and its log.
func clusterOf(t *testing.T, answer http.HandlerFunc) (*Cluster, *safeLog) {
	t.Helper()
	server := httptest.NewServer(answer)
	t.Cleanup(server.Close)
	log := &safeLog{}
	c, err := NewCluster(&rest.Config{Host: server.URL}, slog.New(slog.NewJSONHandler(log, nil)), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	return c, log
}

type safeLog struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *safeLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *safeLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func launcher(t *testing.T) *corev1.Pod {
	t.Helper()
	pod := &corev1.Pod{}
	if err := json.Unmarshal(podJSON(t), pod); err != nil {
		t.Fatal(err)
	}
	return pod
}

func TestNoAnswerInTime(t *testing.T) {
	c, _ := clusterOf(t, func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // or the server does not see that the client is gone
		<-r.Context().Done()
	})
	c.budget = 20 * time.Millisecond
	facts := c.Facts("mesh", launcher(t))
	if facts.VMI != nil || facts.Unknown != "the API server did not answer within 20ms" {
		t.Errorf("facts %+v", facts)
	}
	if n := testutil.ToFloat64(c.asked.WithLabelValues(sourceNone)); n != 1 {
		t.Errorf("counted %v times, want once", n)
	}

	// The review goes on, by the pod alone.
	h := New(config, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	h.Cluster = c
	resp := post(t, h, corpus.Review(podJSON(t)))
	if resp == nil || !resp.Allowed || len(resp.Patch) == 0 || !strings.Contains(strings.Join(resp.Warnings, "\n"), "did not answer within 20ms): decided by the pod alone") {
		t.Errorf("answer %+v", resp)
	}
}

func TestNoAnswerThatCanBeUsed(t *testing.T) {
	vmi := func(edit string) string {
		return `{"apiVersion":"kubevirt.io/v1","kind":"VirtualMachineInstance","metadata":{"name":"vm-web","namespace":"mesh","uid":"` + edit
	}
	for want, answer := range map[string]struct {
		code int
		body string
	}{
		"the API server does not know virtualmachineinstances.kubevirt.io, is KubeVirt installed?": {404, "404 page not found"},
		"there is no mesh/vm-web": {404, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"NotFound","code":404,"message":"x"}`},
		"is forbidden":            {403, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Forbidden","code":403,"message":"vm-web is forbidden"}`},
		"has uid another":         {200, vmi(`another"}}`)},
		"is no CIDR": {200, vmi(string(launcher(t).OwnerReferences[0].UID) + `"},"spec":{"domain":{"devices":{"interfaces":[{"name":"a","masquerade":{}}]}},
			"networks":[{"name":"a","pod":{"vmNetworkCIDR":"nonsense"}}]}}`)},
	} {
		c, _ := clusterOf(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", map[bool]string{true: "application/json", false: "text/plain"}[answer.body[0] == '{'])
			w.WriteHeader(answer.code)
			fmt.Fprintln(w, answer.body)
		})
		if facts := c.Facts("mesh", launcher(t)); facts.VMI != nil || !strings.Contains(facts.Unknown, want) {
			t.Errorf("facts %+v, want unknown: %s", facts, want)
		}
	}
}

// Many pods at a time in a cluster without KubeVirt's API do not all ask for it.
// Some API servers add a sign to the minor release, and one that does not answer changes nothing.
func TestNativeSidecarsByVersion(t *testing.T) {
	answer := ""
	c, _ := clusterOf(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/version" || answer == "" {
			http.Error(w, "not now", http.StatusServiceUnavailable)
			return
		}
		io.WriteString(w, answer)
	})
	for _, step := range []struct {
		answer string
		none   bool
	}{
		{"", false},
		{`{"major":"1","minor":"28+"}`, true},
		{"", true},
		{`{"major":"1","minor":"29"}`, false},
		{`{"major":"1","minor":"9"}`, true},
		{`{"major":"2","minor":"0"}`, false},
		{`{"major":"1","minor":"of old"}`, false},
	} {
		answer = step.answer
		c.askVersion(t.Context())
		if got := c.Facts("default", &corev1.Pod{}).NoNativeSidecars; got != step.none {
			t.Errorf("after version %q: no native sidecars: %t, want %t", step.answer, got, step.none)
		}
	}
}

func TestAbsentIsAskedOnce(t *testing.T) {
	var asked atomic.Int32
	c, _ := clusterOf(t, func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		http.NotFound(w, r)
	})
	pod := launcher(t)
	ask := func() {
		if facts := c.Facts("mesh", pod); facts.Unknown != kubevirt.ErrNotServed.Error() {
			t.Errorf("facts %+v, want %v", facts, kubevirt.ErrNotServed)
		}
	}
	ask()
	if until := c.absent.Load(); until == 0 {
		t.Error("it is not noted that VMIs are not served")
	}
	c.absent.Store(time.Now().Add(time.Hour).UnixNano()) // however long this machine takes
	ask()
	if n := asked.Load(); n != 1 {
		t.Errorf("asked %d times, want once", n)
	}
	c.absent.Store(time.Now().Add(-time.Nanosecond).UnixNano()) // absentFor later
	if ask(); asked.Load() != 2 {
		t.Errorf("asked %d times, want again", asked.Load())
	}
}

// A pod that no VMI controls is nobody's question.
func TestAsksOnlyAboutVMIs(t *testing.T) {
	c, _ := clusterOf(t, func(_ http.ResponseWriter, r *http.Request) { t.Errorf("asked for %s", r.URL) })
	for name, edit := range map[string]func(*metav1.OwnerReference){
		"another kind":       func(o *metav1.OwnerReference) { o.Kind = "VirtualMachine" },
		"another group":      func(o *metav1.OwnerReference) { o.APIVersion = "example.com/v1" },
		"not the controller": func(o *metav1.OwnerReference) { o.Controller = nil },
	} {
		pod := launcher(t)
		edit(&pod.OwnerReferences[0])
		if facts := c.Facts("mesh", pod); facts.Unknown != "" {
			t.Errorf("%s: facts %+v, want none", name, facts)
		}
	}
	if vmiOf(launcher(t)) == nil {
		t.Error("the recorded pod has no VMI")
	}
	pod := launcher(t)
	pod.OwnerReferences[0].APIVersion = "kubevirt.io/v1alpha3"
	if vmiOf(pod) == nil {
		t.Error("another version: want the VMI")
	}
}

// Without KubeVirt's API the watch tries on, and says so once.
func TestNoFlood(t *testing.T) {
	tries := map[string]chan bool{"virtualmachineinstances": make(chan bool, 100), "namespaces": make(chan bool, 100)}
	c, log := clusterOf(t, func(w http.ResponseWriter, r *http.Request) {
		if tried, ok := tries[path.Base(r.URL.Path)]; ok { // and not the version
			tried <- true
		}
		http.NotFound(w, r)
	})
	c.Start(t.Context())
	for resource, tried := range tries {
		for range 6 { // two requests a try
			select {
			case <-tried:
			case <-time.After(time.Minute):
				t.Fatalf("the watch of %s does not try again", resource)
			}
		}
	}
	for _, resource := range []string{"virtualmachineinstances.kubevirt.io", "namespaces"} {
		if n := strings.Count(log.String(), `"resource":"`+resource+`"`); n != 1 {
			t.Errorf("%d lines about %s, want one:\n%s", n, resource, log)
		}
	}
}

// Of a VMI the cache keeps a small part.
func TestKeepsLittle(t *testing.T) {
	b, err := os.ReadFile("../../test/corpus/pods/v1.9.0/masquerade-dualstack-cidrs/vmi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	u := &unstructured.Unstructured{}
	if err := yaml.Unmarshal(b, &u.Object); err != nil {
		t.Fatal(err)
	}
	u.SetAnnotations(map[string]string{"kubectl.kubernetes.io/last-applied-configuration": string(b), "meshvirt.io/mode": "rules"})
	object, err := keepVMI(u)
	if err != nil {
		t.Fatal(err)
	}
	known := object.(*knownVMI)
	if known.vmi.IPv4.String() != "10.11.12.2" || known.Name != "vm-dual" || known.Namespace != "mesh" || known.UID == "" {
		t.Errorf("kept %+v of %+v", known.vmi, known.ObjectMeta)
	}
	if got := fmt.Sprint(known.vmi.Annotations, known.GetAnnotations(), known.GetLabels()); got != "map[meshvirt.io/mode:rules] map[] map[]" {
		t.Errorf("kept %s, want our annotation only", got)
	}
	if again, err := keepVMI(object); err != nil || again != object {
		t.Errorf("kept again: %v, %v", again, err)
	}
}

func TestEventsOfOutcomes(t *testing.T) {
	plain := &corev1.Pod{}
	asks := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{"meshvirt.io/mode": "off"}}}
	again := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{"meshvirt.io/status": "{}"}}}
	rules := mutate.Report{Mode: plan.Rules, Reason: decision.MasqueradeSidecar, Mesh: "istio"}
	warned := rules
	warned.Warnings = []string{"one", "two."}
	off := func(r decision.Reason, mesh string) mutate.Report {
		return mutate.Report{Mode: plan.Off, Reason: r, Mesh: mesh}
	}
	for name, c := range map[string]struct {
		pod    *corev1.Pod
		report mutate.Report
		result string
		want   string
	}{
		"adapted":                      {plain, rules, resultPatched, "Normal MeshJoined Joined istio in mode rules (MasqueradeSidecar). " + decision.ReasonTexts[decision.MasqueradeSidecar]},
		"adapted with warnings":        {plain, warned, resultPatched, "Normal MeshJoined Joined istio in mode rules (MasqueradeSidecar). " + decision.ReasonTexts[decision.MasqueradeSidecar] + " Warning: one. Warning: two."},
		"adapted before":               {again, rules, resultPatched, ""},
		"adapted before, unchanged":    {again, rules, resultUnchanged, ""},
		"denied":                       {plain, off(decision.Invalid, ""), resultDenied, "Warning MeshRefused why"},
		"an error":                     {plain, mutate.Report{}, resultErrored, ""},
		"left alone beside a mesh":     {plain, off(decision.BindingUnsupported, "istio"), resultUnchanged, "Normal MeshSkipped Left as istio made it (BindingUnsupported). " + decision.ReasonTexts[decision.BindingUnsupported]},
		"left alone as asked for":      {asks, off(decision.OptedOut, ""), resultUnchanged, "Normal MeshSkipped Left alone (OptedOut). " + decision.ReasonTexts[decision.OptedOut]},
		"left alone without a mesh":    {plain, off(decision.NoMesh, ""), resultUnchanged, ""},
		"no VM":                        {asks, off(decision.NotVirtLauncher, ""), resultUnchanged, ""},
		"left alone, but asks for us":  {asks, off(decision.NoMesh, ""), resultUnchanged, "Normal MeshSkipped Left alone (NoMesh). " + decision.ReasonTexts[decision.NoMesh]},
		"an earlier one told of a pod": {again, off(decision.NoMesh, ""), resultUnchanged, ""},
	} {
		got := ""
		if e := eventOf(c.pod, c.report, c.result, fmt.Errorf("why")); e != nil {
			got = e.Type + " " + e.Reason + " " + e.Message
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func TestEventsNeverBlock(t *testing.T) {
	c, _ := clusterOf(t, func(_ http.ResponseWriter, r *http.Request) { t.Errorf("asked for %s before the start", r.URL) })
	pod, report := launcher(t), mutate.Report{Mode: plan.Rules, Reason: decision.MasqueradeSidecar}
	c.Report(&review.Request{Namespace: "mesh", DryRun: true}, pod, report, resultPatched, nil)
	if n := len(c.events.queue); n != 0 {
		t.Fatalf("%d events of a dry run, want none", n)
	}
	for range eventQueue + 5 {
		c.Report(&review.Request{Namespace: "mesh"}, pod, report, resultPatched, nil)
	}
	if n := testutil.ToFloat64(c.events.count.WithLabelValues(eventDropped)); n != 5 {
		t.Errorf("%v dropped, want 5", n)
	}
	e := <-c.events.queue
	if o := e.InvolvedObject; e.Namespace != "mesh" || o.Name != "vm-web" || o.UID != pod.OwnerReferences[0].UID || o.Kind != "VirtualMachineInstance" || o.APIVersion != "kubevirt.io/v1" {
		t.Errorf("event %+v", e)
	}
}

func TestRepeatedEvents(t *testing.T) {
	written, at := map[said]time.Time{}, time.Now()
	event := func(reason string, after time.Duration) *corev1.Event {
		return &corev1.Event{InvolvedObject: corev1.ObjectReference{UID: "1"}, Reason: reason, LastTimestamp: metav1.NewTime(at.Add(after))}
	}
	for i, c := range []struct {
		event *corev1.Event
		want  bool
	}{
		{event("a", 0), false},
		{event("a", time.Second), true},
		{event("b", time.Second), false},
		{event("a", repeatWindow+time.Second), false},
	} {
		if got := repeated(written, c.event); got != c.want {
			t.Errorf("event %d: repeated %t, want %t", i, got, c.want)
		}
	}
	if repeated(written, event("c", time.Hour)); len(written) != 1 {
		t.Errorf("%d events are remembered, want 1", len(written))
	}
}

func TestLongEventsAreCut(t *testing.T) {
	e := newEvents(nil, slog.New(slog.DiscardHandler))
	e.add(&corev1.Event{Message: strings.Repeat("ä", 1000), InvolvedObject: corev1.ObjectReference{Name: strings.Repeat("a.", 126)}})
	got := <-e.queue
	if len(got.Message) > maxEventMessage || !strings.HasSuffix(got.Message, "ä...") {
		t.Errorf("message of %d bytes: %s", len(got.Message), got.Message)
	}
	if len(got.Name) > 253 || strings.Contains(got.Name, "..") {
		t.Errorf("name %s", got.Name)
	}
}

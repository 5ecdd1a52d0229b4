package record_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"github.com/meshvirt/meshvirt/pkg/annotations"
	"github.com/meshvirt/meshvirt/pkg/mutate"
	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/record"
	"github.com/meshvirt/meshvirt/pkg/templates"
	"github.com/meshvirt/meshvirt/test/corpus"
)

// An adapted pod tells how and by which plan; one that is not, or that somebody else wrote into, nothing.
func TestAdaptedPodTells(t *testing.T) {
	pod, report, errs := mutate.Apply(corpus.Pod(t, corpus.Sidecar), mutate.Facts{}, config)
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	want := record.Status{Version: plan.Release, Mesh: report.Mesh, Mode: report.Mode, Reason: report.Reason, Interfaces: []string{"k6t-eth0"}, Facts: "pod"}
	if diff := cmp.Diff(want, record.StatusOf(pod)); diff != "" {
		t.Errorf("status (-want +got)\n%s", diff)
	}
	p, ok := record.PlanOf(pod)
	if diff := cmp.Diff(report.Plan.Guest.IPv4.String(), p.Guest.IPv4.String()); !ok || diff != "" || p.Mode != report.Mode {
		t.Errorf("plan %+v, %t; want %+v", p, ok, report.Plan)
	}
	rules := func(p *corev1.Pod) *corev1.Container {
		return &p.Spec.InitContainers[templates.Index(p.Spec.InitContainers, templates.RulesName)]
	}
	for name, change := range map[string]func(*corev1.Pod){
		"never adapted": func(p *corev1.Pod) { *p = *corpus.Pod(t, corpus.Sidecar) },
		"no words of ours": func(p *corev1.Pod) {
			p.Annotations[annotations.Status] = "adapted"
			rules(p).Env[0].Value = "{}"
		},
		"another release": func(p *corev1.Pod) {
			delete(p.Annotations, annotations.Status)
			rules(p).Env[0].Value = strings.Replace(rules(p).Env[0].Value, plan.Release, "0.0.1", 1)
		},
	} {
		other := pod.DeepCopy()
		change(other)
		if got := record.StatusOf(other); got.Mode != "" {
			t.Errorf("%s: status %s", name, got)
		}
		if p, ok := record.PlanOf(other); ok {
			t.Errorf("%s: plan %+v", name, p)
		}
	}
}

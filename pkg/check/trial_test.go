package check

import (
	"errors"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshvirt/meshvirt/pkg/annotations"
	"github.com/meshvirt/meshvirt/pkg/inventory"
	"github.com/meshvirt/meshvirt/pkg/mutate"
)

// What is tried is adapted whatever the webhook's default, and without a container more.
func TestTrialPod(t *testing.T) {
	for _, config := range []mutate.Config{{}, {DefaultMode: "off"}, {DefaultMode: "tproxy"}} {
		before := TrialPod("vms")
		after, _, errs := mutate.Apply(before, mutate.Facts{}, config)
		if len(errs) > 0 || after.Annotations[annotations.Status] == "" {
			t.Errorf("default mode %q: status %q, errors %v", config.DefaultMode, after.Annotations[annotations.Status], errs)
		}
		if n := len(after.Spec.InitContainers) + len(after.Spec.Containers); n != 2 {
			t.Errorf("default mode %q: %d containers, want the two that it had", config.DefaultMode, n)
		}
	}
}

func TestTrialNamespace(t *testing.T) {
	c := well(t)
	named := func(name string, labels map[string]string) corev1.Namespace {
		return corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}
	}
	want := func(want string) {
		t.Helper()
		if got := TrialNamespace(c.Cluster); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	c.Namespaces = append([]corev1.Namespace{named("kube-public", nil), named("default", nil)}, c.Namespaces...)
	want(here)
	c.Namespaces[2].Labels[annotations.Inject] = mutate.OptedOutValue
	want("default")
	c.Namespaces[1].Labels = map[string]string{"kubernetes.io/metadata.name": "kube-system"} // which the chart leaves out
	want("")
	c.Cluster = &inventory.Cluster{}
	want("")
}

// Of a certificate and of a connection other things are to be looked at.
func TestUnansweredFix(t *testing.T) {
	for said, want := range map[string]string{
		"x509: certificate signed by unknown authority": "caBundle",
		"context deadline exceeded":                     "NetworkPolicy",
	} {
		c := well(t)
		c.Tried = &inventory.Trial{Namespace: here, Err: errors.New(`failed calling webhook "inject.meshvirt.io": ` + said)}
		if all := Run(c.Cluster).Findings; len(all) != 1 || !strings.Contains(all[0].Fix, want) {
			t.Errorf("%+v, want %q in the fix", all, want)
		}
	}
}

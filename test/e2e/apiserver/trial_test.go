package apiserver

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvirt/meshvirt/pkg/check"
)

// try is want with a pod in a dry run.
func (c *checked) try(t *testing.T, want ...check.Code) (text string) {
	t.Helper()
	got, text := c.run(t, c.kubeconfig, "-n", factsNamespace, "--try")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("--try: (-want +got)\n%s%s", diff, text)
	}
	return text
}

// tries has the command try a pod while the webhook runs: it comes back adapted, also where little is allowed, unless the
// API server does not ask.
func (c *checked) tries(t *testing.T, enforce func(level string)) {
	t.Helper()
	c.try(t)
	if got, text := c.run(t, c.kubeconfig, "-A", "--try"); len(got) > 0 {
		t.Errorf("-A --try: %s", text)
	}
	enforce(`"restricted"`)
	c.try(t, check.PodSecurity)
	enforce(`null`)
	c.patchWebhook(t, "add", "objectSelector", `{"matchLabels":{"kubevirt.io":"virt-launcher"}}`)
	c.await(t, "the API server no longer asks", func() bool {
		got, _ := c.run(t, c.kubeconfig, "-n", factsNamespace, "--try")
		return cmp.Equal(got, []check.Code{check.NotAsked})
	})
	c.patchWebhook(t, "replace", "objectSelector", `{}`)
	c.await(t, "the API server asks again", func() bool {
		got, _ := c.run(t, c.kubeconfig, "-n", factsNamespace, "--try")
		return len(got) == 0
	})
	var pods corev1.PodList
	if err := c.Client.List(t.Context(), &pods, client.InNamespace(factsNamespace)); err != nil {
		t.Fatal(err)
	}
	for _, pod := range pods.Items {
		if strings.HasPrefix(pod.Name, "meshvirt-check-") {
			t.Errorf("pod %s was really created", pod.Name)
		}
	}
}

package apiserver

import (
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"
)

// The API server takes everything that the chart renders, unknown fields being errors, and its pods in
// a namespace that admits only what meets the restricted Pod Security Standard.
func TestChartInstalls(t *testing.T) { each(t, testChartInstalls) }

func testChartInstalls(t *testing.T, s *site) {
	restricted := s.namespace(t, nil, "pod-security.kubernetes.io/enforce=restricted")
	documents, err := s.template(nil)
	if err != nil {
		t.Fatal(err)
	}
	var kinds []string
	for _, document := range documents {
		object := &unstructured.Unstructured{}
		if err := yaml.Unmarshal(document, object); err != nil {
			t.Fatal(err)
		}
		kind := object.GetKind()
		kinds = append(kinds, kind)
		if kind == "MutatingWebhookConfiguration" {
			object.SetName("another-" + object.GetName()) // the name is taken: by the one that serves these tests
		} else if !strings.HasPrefix(kind, "Cluster") {
			object.SetNamespace(restricted)
		}
		if err := s.Client.Create(t.Context(), object, client.DryRunAll, client.FieldValidation(metav1.FieldValidationStrict)); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
		if kind != "Deployment" {
			continue
		}
		var deployment appsv1.Deployment
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(object.Object, &deployment); err != nil {
			t.Fatal(err)
		}
		template := deployment.Spec.Template
		// Not there, as nothing was really installed.
		template.Spec.ServiceAccountName, template.Spec.DeprecatedServiceAccount = "", ""
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{GenerateName: "webhook-", Labels: template.Labels}, Spec: template.Spec}
		if _, err := s.Admit(t.Context(), restricted, pod, client.DryRunAll); err != nil {
			t.Errorf("the webhook's pod: %v", err)
		}
	}
	slices.Sort(kinds)
	if want := []string{"ClusterRole", "ClusterRoleBinding", "Deployment", "MutatingWebhookConfiguration", "PodDisruptionBudget", "Service", "ServiceAccount"}; !slices.Equal(kinds, want) {
		t.Errorf("the chart renders %v, want %v", kinds, want)
	}
}

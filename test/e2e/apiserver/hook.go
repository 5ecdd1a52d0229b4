package apiserver

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"sync"
	"time"

	admissionregistration "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"
)

// Change is what a hook does to a pod: it may change it in place.
type Change func(pod *corev1.Pod) (*corev1.Pod, error)

// Hook is a mutating webhook that this process serves.
type Hook struct {
	cluster *Cluster
	config  *admissionregistration.MutatingWebhookConfiguration
	server  *http.Server
}

// StartHook serves change as the only webhook of a MutatingWebhookConfiguration of that name, for new
// pods in namespaces with the labels. It returns when the API server calls it; Close or the cluster's
// Stop ends it.
func (c *Cluster) StartHook(ctx context.Context, configuration, webhook string, namespaces map[string]string, change Change) (*Hook, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	crt, key, err := c.authority.issue()
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(crt, key)
	if err != nil {
		return nil, err
	}
	logs, err := c.log(configuration + ".log")
	if err != nil {
		return nil, err
	}
	logger := log.New(logs, "", log.LstdFlags)
	handler, err := admission.StandaloneWebhook(&admission.Webhook{Handler: answer(change, logger)}, admission.StandaloneOptions{})
	if err != nil {
		return nil, err
	}
	h := &Hook{cluster: c, server: &http.Server{
		Handler:           handler,
		TLSConfig:         &tls.Config{Certificates: []tls.Certificate{pair}},
		ErrorLog:          logger,
		ReadHeaderTimeout: 10 * time.Second,
	}}
	go func() {
		if err := h.server.ServeTLS(listener, "", ""); !errors.Is(err, http.ErrServerClosed) {
			logger.Printf("serve: %v", err)
		}
	}()
	c.atStop(h.server.Close)

	url := "https://" + listener.Addr().String()
	fail, never, none, scope := admissionregistration.Fail, admissionregistration.NeverReinvocationPolicy, admissionregistration.SideEffectClassNone, admissionregistration.NamespacedScope
	h.config = &admissionregistration.MutatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: configuration},
		Webhooks: []admissionregistration.MutatingWebhook{{
			Name:                    webhook,
			AdmissionReviewVersions: []string{"v1"},
			ClientConfig:            admissionregistration.WebhookClientConfig{URL: &url, CABundle: c.authority.pem},
			Rules: []admissionregistration.RuleWithOperations{{
				Operations: []admissionregistration.OperationType{admissionregistration.Create},
				Rule:       admissionregistration.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"pods"}, Scope: &scope},
			}},
			FailurePolicy:      &fail,
			ReinvocationPolicy: &never,
			SideEffects:        &none,
			NamespaceSelector:  &metav1.LabelSelector{MatchLabels: namespaces},
		}},
	}
	if err := c.Client.Create(ctx, h.config); err != nil {
		return nil, fmt.Errorf("register %s: %w", configuration, err)
	}
	probes := configuration + "-probe"
	err = c.Namespace(ctx, probes, namespaces)
	if err == nil {
		err = c.awaitReview(ctx, webhook, probes, probePod(nil))
	}
	if err != nil {
		return nil, errors.Join(err, h.Close(ctx))
	}
	return h, nil
}

// answer makes an admission handler of change.
func answer(change Change, logger *log.Logger) admission.HandlerFunc {
	return func(_ context.Context, r admission.Request) admission.Response {
		pod := &corev1.Pod{}
		if err := json.Unmarshal(r.Object.Raw, pod); err != nil {
			return admission.Errored(http.StatusBadRequest, err)
		}
		pod, err := change(pod)
		if err != nil {
			logger.Printf("%s/%s: %v", r.Namespace, r.UID, err)
			return admission.Errored(http.StatusInternalServerError, err)
		}
		to, err := json.Marshal(pod)
		if err != nil {
			return admission.Errored(http.StatusInternalServerError, err)
		}
		return admission.PatchResponseFromRaw(r.Object.Raw, to)
	}
}

// Close takes the hook out of the API server and stops serving it.
func (h *Hook) Close(ctx context.Context) error {
	return errors.Join(client.IgnoreNotFound(h.cluster.Client.Delete(ctx, h.config)), h.server.Close())
}

// The names under which Istio's chart installs its injector.
const (
	injectorConfiguration = "istio-sidecar-injector"
	injectorWebhook       = "rev.namespace.sidecar-injector.istio.io"
)

// Injecting are the labels of a namespace whose pods the Injector injects.
var Injecting = map[string]string{"istio-injection": "enabled"}

// Injector stands for Istio's injector: it repeats what that did to a pod when it was recorded.
type Injector struct {
	*Hook
	mu         sync.Mutex
	recordings map[string]*Recording
}

// StartInjector registers the injector under the names, and with the reinvocation policy Never, of
// Istio's chart. Until Use it injects nothing.
func (c *Cluster) StartInjector(ctx context.Context) (*Injector, error) {
	i := &Injector{recordings: map[string]*Recording{}}
	var err error
	i.Hook, err = c.StartHook(ctx, injectorConfiguration, injectorWebhook, Injecting, i.change)
	return i, err
}

// Use makes r the answer for every pod in the namespace, which must have the labels Injecting.
func (i *Injector) Use(namespace string, r *Recording) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.recordings[namespace] = r
}

func (i *Injector) change(pod *corev1.Pod) (*corev1.Pod, error) {
	i.mu.Lock()
	r := i.recordings[pod.Namespace]
	i.mu.Unlock()
	// As the real one does with what it has been told to leave alone.
	if r == nil || pod.Labels["sidecar.istio.io/inject"] == "false" {
		return pod, nil
	}
	return r.Inject(pod)
}

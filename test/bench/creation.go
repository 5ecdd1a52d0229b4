package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/go-logr/logr"
	admissionregistration "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/meshvirt/meshvirt/pkg/annotations"
	"github.com/meshvirt/meshvirt/test/e2e/apiserver"
)

const (
	// creations of each side are measured, after as many as warmUp that are not.
	creations = 400
	warmUp    = 50
)

// creation compares how long the creation of a pod takes at a real API server, behind our webhook and behind
// the peer. One call of one side follows one of the other.
func creation() (_ []Result, err error) {
	ctrllog.SetLogger(logr.Discard())
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "meshvirt-bench-")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	cluster, err := apiserver.Start(dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, cluster.Stop()) }()
	if _, err := cluster.StartWebhook(ctx); err != nil {
		return nil, err
	}
	raw, err := recorded()
	if err != nil {
		return nil, err
	}
	var pod corev1.Pod
	if err := json.Unmarshal(raw, &pod); err != nil {
		return nil, err
	}
	pod.Name, pod.ResourceVersion, pod.UID = "", "", ""
	pod.GenerateName = "virt-launcher-vm-web-"
	namespaces := [2]string{"ours", "noop"}
	if err := errors.Join(cluster.Namespace(ctx, namespaces[0], nil), cluster.Namespace(ctx, namespaces[1], noopLabels)); err != nil {
		return nil, err
	}
	stop, err := startNoop(ctx, cluster, dir, namespaces[1], &pod)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, stop()) }()
	var took [2][]float64 // milliseconds
	for i := range warmUp + creations {
		for side, namespace := range namespaces {
			start := time.Now()
			created, err := cluster.Admit(ctx, namespace, &pod)
			ms := time.Since(start).Seconds() * 1000
			if err != nil {
				return nil, err
			}
			if adapted := created.Annotations[annotations.Status] != ""; adapted != (side == 0) {
				return nil, fmt.Errorf("pod %d in namespace %s: adapted %t", i, namespace, adapted)
			}
			if i >= warmUp {
				took[side] = append(took[side], ms)
			}
		}
	}
	n, err := cluster.Reviews(ctx, noopWebhook)
	if err != nil {
		return nil, err
	}
	if n < warmUp+creations {
		return nil, fmt.Errorf("the peer was asked %d times, want %d", n, warmUp+creations)
	}
	p50 := compare("pod creation p50", "ms", noopName, took[0], took[1])
	more := Result{Name: "pod creation p50 more than the peer's", Unit: "ms", Ours: p50.Ours - p50.Peer, Peer: 0.15, PeerName: "the limit", Goal: "ours <= 0.15"}
	more.Ratio = more.Ours / more.Peer
	return []Result{p50, more}, nil
}

// noopWebhook is the peer's name at the API server.
const noopWebhook = "noop.meshvirt.io"

// noopLabels are those of the namespace whose pods the peer reviews in our webhook's place.
var noopLabels = map[string]string{"meshvirt.io/inject": "disabled"}

// startNoop registers the peer with our own configuration but for the namespaces, and waits until it is
// asked about the pod in the namespace.
func startNoop(ctx context.Context, cluster *apiserver.Cluster, dir, namespace string, pod *corev1.Pod) (stop func() error, err error) {
	if _, err := compile(dir, "noop", "./test/bench/noop"); err != nil {
		return nil, err
	}
	peer, err := sides[1].start(ctx, dir)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, peer.stop())
		}
	}()
	raw, err := json.Marshal(pod)
	if err != nil {
		return nil, err
	}
	if _, err := peer.firstAnswer(reviewOf(raw)); err != nil {
		return nil, err
	}
	var ours admissionregistration.MutatingWebhookConfiguration
	if err := cluster.Client.Get(ctx, types.NamespacedName{Name: "meshvirt-webhook"}, &ours); err != nil {
		return nil, err
	}
	config := &admissionregistration.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "noop"}, Webhooks: ours.Webhooks}
	w := &config.Webhooks[0]
	w.Name = noopWebhook
	w.ClientConfig = admissionregistration.WebhookClientConfig{URL: &peer.url, CABundle: peer.ca}
	w.NamespaceSelector = &metav1.LabelSelector{MatchLabels: noopLabels}
	if err := cluster.Client.Create(ctx, config); err != nil {
		return nil, fmt.Errorf("register the peer: %w", err)
	}
	// The API server learns of a new configuration a moment after it is stored.
	for deadline := time.Now().Add(answerWithin); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if _, err := cluster.Admit(ctx, namespace, pod, client.DryRunAll); err != nil {
			return nil, err
		}
		if n, err := cluster.Reviews(ctx, noopWebhook); err != nil || n > 0 {
			return peer.stop, err
		}
	}
	return nil, fmt.Errorf("the API server does not ask the peer within %s", answerWithin)
}

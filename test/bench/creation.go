package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
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

// creationSides are our webhook and its peers. Each answers for the pods of the namespace of its name.
var creationSides = []struct {
	name    string
	adapted bool
}{
	{"ours", true},
	{"noop", false},
	{"same-patch", true}, // has our webhook's patch ready
}

// creation compares how long the creation of a pod takes at a real API server, behind our webhook and behind
// its peers. One call of each side follows one of the others, and another side begins each time.
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
	pod, patch, err := creationPod()
	if err != nil {
		return nil, err
	}
	if _, err := compile(dir, "noop", "./test/bench/noop"); err != nil {
		return nil, err
	}
	file := filepath.Join(dir, "patch.json")
	if err := errors.Join(os.WriteFile(file, patch, 0o600), cluster.Namespace(ctx, creationSides[0].name, nil)); err != nil {
		return nil, err
	}
	for _, side := range creationSides[1:] {
		var args []string
		if side.adapted {
			args = []string{"-patch=" + file}
		}
		var stop func() error
		if stop, err = startPeer(ctx, cluster, dir, side.name, pod, args...); err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, stop()) }()
	}
	took := make([][]float64, len(creationSides)) // milliseconds
	for i := range warmUp + creations {
		for turn := range creationSides {
			n := (i + turn) % len(creationSides)
			side := creationSides[n]
			start := time.Now()
			created, err := cluster.Admit(ctx, side.name, pod)
			ms := time.Since(start).Seconds() * 1000
			if err != nil {
				return nil, err
			}
			if adapted := created.Annotations[annotations.Status] != ""; adapted != side.adapted {
				return nil, fmt.Errorf("pod %d in namespace %s: adapted %t", i, side.name, adapted)
			}
			if i >= warmUp {
				took[n] = append(took[n], ms)
			}
		}
	}
	for _, side := range creationSides[1:] {
		n, err := cluster.Reviews(ctx, peerWebhook(side.name))
		if err != nil {
			return nil, err
		}
		if n < warmUp+creations {
			return nil, fmt.Errorf("the peer %s was asked %d times, want %d", side.name, n, warmUp+creations)
		}
	}
	const samePatch = "handler that has the same patch ready"
	results := []Result{
		compare("pod creation p50", "ms", noopName, took[0], took[1]),
		compare("pod creation p50 beside the same patch", "ms", samePatch, took[0], took[2]),
		compare("pod creation p50 of the same patch", "ms", noopName, took[2], took[1]),
	}
	for i, of := range []string{noopName, samePatch} {
		more := Result{Name: results[i].Name + ": ours more", Unit: "ms", Ours: results[i].Ours - results[i].Peer, Peer: 0.15, PeerName: "the limit, to " + of, Goal: "ours <= 0.15"}
		more.Ratio = more.Ours / more.Peer
		results = append(results, more)
	}
	return results, nil
}

// creationPod is the pod that is created, and our webhook's patch for it.
func creationPod() (*corev1.Pod, []byte, error) {
	raw, err := recorded()
	if err != nil {
		return nil, nil, err
	}
	var pod corev1.Pod
	if err := json.Unmarshal(raw, &pod); err != nil {
		return nil, nil, err
	}
	pod.Name, pod.ResourceVersion, pod.UID = "", "", ""
	pod.GenerateName = "virt-launcher-vm-web-"
	patch, err := patchFor(handler(), raw)
	return &pod, patch, err
}

// peerWebhook is a peer's name at the API server.
func peerWebhook(name string) string { return name + ".meshvirt.io" }

// startPeer registers the peer with our own configuration but for its namespace, which it makes, and waits
// until it is asked about the pod there.
func startPeer(ctx context.Context, cluster *apiserver.Cluster, dir, name string, pod *corev1.Pod, args ...string) (stop func() error, err error) {
	labels := map[string]string{"meshvirt.io/inject": "disabled", "bench": name}
	if err := cluster.Namespace(ctx, name, labels); err != nil {
		return nil, err
	}
	peer, err := sides[1].start(ctx, dir, args...)
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
	config := &admissionregistration.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: name}, Webhooks: ours.Webhooks}
	w := &config.Webhooks[0]
	w.Name = peerWebhook(name)
	w.ClientConfig = admissionregistration.WebhookClientConfig{URL: &peer.url, CABundle: peer.ca}
	w.NamespaceSelector = &metav1.LabelSelector{MatchLabels: labels}
	if err := cluster.Client.Create(ctx, config); err != nil {
		return nil, fmt.Errorf("register the peer: %w", err)
	}
	// The API server learns of a new configuration a moment after it is stored.
	for deadline := time.Now().Add(answerWithin); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if _, err := cluster.Admit(ctx, name, pod, client.DryRunAll); err != nil {
			return nil, err
		}
		if n, err := cluster.Reviews(ctx, peerWebhook(name)); err != nil || n > 0 {
			return peer.stop, err
		}
	}
	return nil, fmt.Errorf("the API server does not ask the peer %s within %s", name, answerWithin)
}

package certs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"time"

	admissionregistration "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/retry"
)

// fieldManager owns caBundle in the configuration's managedFields.
const fieldManager = "meshvirt-webhook"

// store is the two objects of the cluster that this package is about.
type store struct {
	client                kubernetes.Interface
	namespace, secretName string
	configuration         string
}

// currentCA gives the CA that the Secret holds. A Secret that the authority will replace, because its
// content is broken or has expired, is an error: its CA will sign nothing.
func (s *store) currentCA(ctx context.Context) (*x509.Certificate, error) {
	secret, err := s.client.CoreV1().Secrets(s.namespace).Get(ctx, s.secretName, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("get Secret %s/%s: %w", s.namespace, s.secretName, err)
	}
	pair, err := tls.X509KeyPair(secret.Data[corev1.TLSCertKey], secret.Data[corev1.TLSPrivateKeyKey])
	switch {
	case err != nil:
		return nil, fmt.Errorf("read Secret %s/%s: %w", s.namespace, s.secretName, err)
	case !pair.Leaf.IsCA:
		return nil, fmt.Errorf("read Secret %s/%s: %s is no CA", s.namespace, s.secretName, corev1.TLSCertKey)
	case time.Now().After(pair.Leaf.NotAfter):
		return nil, fmt.Errorf("read Secret %s/%s: the CA expired on %s", s.namespace, s.secretName, pair.Leaf.NotAfter)
	}
	return pair.Leaf, nil
}

// ensure makes API servers trust the CAs in must, in every webhook of the configuration. It gives all that they
// trusted in every webhook before, and do now. It writes only if one of must is missing, so that replicas whose
// clocks differ do not take turns in what they think has expired.
func (s *store) ensure(ctx context.Context, must []*x509.Certificate) (before, now []*x509.Certificate, err error) {
	configurations := s.client.AdmissionregistrationV1().MutatingWebhookConfigurations()
	err = retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		c, err := configurations.Get(ctx, s.configuration, metav1.GetOptions{})
		if err != nil {
			return fmt.Errorf("get MutatingWebhookConfiguration: %w", err) // the API server's error says which
		}
		if len(c.Webhooks) == 0 {
			return fmt.Errorf("MutatingWebhookConfiguration %s has no webhooks", c.Name)
		}
		before = inEvery(c)
		if now = before; containsAll(now, must) {
			return nil
		}
		var have []*x509.Certificate
		for _, w := range c.Webhooks {
			have = append(have, parse(w.ClientConfig.CABundle)...)
		}
		want := merge(have, must, time.Now())
		patch, err := patchOf(c, encode(want))
		if err != nil {
			return err
		}
		// By name, and only what differs: whatever else others change at the same time stays.
		_, err = configurations.Patch(ctx, c.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{FieldManager: fieldManager})
		if err != nil {
			return fmt.Errorf("patch MutatingWebhookConfiguration: %w", err)
		}
		now = want
		return nil
	})
	return before, now, err
}

// inEvery gives the CAs that every webhook of the configuration trusts.
func inEvery(c *admissionregistration.MutatingWebhookConfiguration) []*x509.Certificate {
	all := parse(c.Webhooks[0].ClientConfig.CABundle)
	for _, w := range c.Webhooks[1:] {
		var both []*x509.Certificate
		for _, ca := range parse(w.ClientConfig.CABundle) {
			if contains(all, ca) {
				both = append(both, ca)
			}
		}
		all = both
	}
	return all
}

func containsAll(all, must []*x509.Certificate) bool {
	for _, c := range must {
		if !contains(all, c) {
			return false
		}
	}
	return true
}

// patchOf gives the strategic merge patch that sets the bundle of every webhook; webhooks are merged by
// their names. With the version in it, it fails with a conflict if another replica was faster, whose
// CA would be lost otherwise.
func patchOf(c *admissionregistration.MutatingWebhookConfiguration, bundle []byte) ([]byte, error) {
	type clientConfig struct {
		CABundle []byte `json:"caBundle"`
	}
	type webhook struct {
		Name         string       `json:"name"`
		ClientConfig clientConfig `json:"clientConfig"`
	}
	var patch struct {
		Metadata struct {
			UID             types.UID `json:"uid"`
			ResourceVersion string    `json:"resourceVersion"`
		} `json:"metadata"`
		Webhooks []webhook `json:"webhooks"`
	}
	patch.Metadata.UID, patch.Metadata.ResourceVersion = c.UID, c.ResourceVersion
	for _, w := range c.Webhooks {
		patch.Webhooks = append(patch.Webhooks, webhook{w.Name, clientConfig{bundle}})
	}
	return json.Marshal(patch)
}

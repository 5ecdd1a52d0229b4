package certs

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cert-manager/cert-manager/pkg/server/tls/authority"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
)

// Two replicas come up with one CA, which the configuration trusts in each of its webhooks.
func TestReplicasShareACA(t *testing.T) {
	t.Parallel()
	one := place(t)
	configure(t, &one)
	other := Managed{}
	copyTo(&one, &other)
	start(t, &one)
	start(t, &other)
	for _, m := range []*Managed{&one, &other} {
		await(t, "ready", m.Ready)
	}
	ca, err := secretCA(t.Context(), &one)
	if err != nil {
		t.Fatal(err)
	}
	first, second, err := bundles(t.Context(), &one)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first, second) || !bytes.Equal(first, encode([]*x509.Certificate{ca})) {
		t.Errorf("the bundles are\n%s\n%s\nwant both to be the Secret's CA", first, second)
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	for _, m := range []*Managed{&one, &other} {
		c, err := m.GetCertificate(nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: one.DNSNames[0]}); err != nil {
			t.Error(err)
		}
	}
}

// Whatever somebody else writes into caBundle, API servers soon trust our CA again, and what is theirs stays.
func TestRepairsTheBundle(t *testing.T) {
	t.Parallel()
	m := place(t)
	configure(t, &m)
	start(t, &m)
	await(t, "ready", m.Ready)
	foreign := newCA(t, 0, time.Hour)
	for name, text := range map[string][]byte{"nothing": nil, "another CA": encode([]*x509.Certificate{foreign}), "no certificate": []byte("-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n")} {
		patch := fmt.Sprintf(`[{"op":"add","path":"/webhooks/1/clientConfig/caBundle","value":"%s"}]`, base64.StdEncoding.EncodeToString(text))
		if _, err := admin.AdmissionregistrationV1().MutatingWebhookConfigurations().Patch(t.Context(), m.Configuration, types.JSONPatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		await(t, name, func() error {
			ca, err := secretCA(t.Context(), &m)
			if err != nil {
				return err
			}
			_, bundle, err := bundles(t.Context(), &m)
			if err != nil {
				return err
			}
			if all := parse(bundle); !contains(all, ca) || !containsAll(all, parse(text)) {
				return fmt.Errorf("the bundle is %q", bundle)
			}
			return nil
		})
	}
}

// Until API servers have had their time, nothing is signed by a new CA, not even the renewal of a leaf; the CA
// of the certificate that is served goes on to be trusted, whatever is done to the bundle.
func TestHoldsANewCABack(t *testing.T) {
	t.Parallel()
	m := place(t)
	configure(t, &m)
	start(t, &m)
	await(t, "ready", m.Ready)
	old, err := secretCA(t.Context(), &m)
	if err != nil {
		t.Fatal(err)
	}
	m.gate.mu.Lock()
	m.gate.propagation = time.Hour
	m.gate.mu.Unlock()
	if err := admin.CoreV1().Secrets(m.Namespace).Delete(t.Context(), m.SecretName, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	both := func() error {
		current, err := secretCA(t.Context(), &m)
		if err != nil {
			return err
		}
		bundle, _, err := bundles(t.Context(), &m)
		if all := parse(bundle); err != nil || current.Equal(old) || !containsAll(all, []*x509.Certificate{old, current}) {
			return fmt.Errorf("the bundle is %q (%v), want it to have the Secret's old CA and its new one", bundle, err)
		}
		return nil
	}
	await(t, "both CAs", both)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.gate.Sign(&x509.Certificate{PublicKey: key.Public()}); !errors.Is(err, authority.ErrCertificateNotAvailable) {
		t.Errorf("it signs, or fails with %v, want %v", err, authority.ErrCertificateNotAvailable)
	}
	patch := `{"webhooks":[{"name":"one.example.com","clientConfig":{"caBundle":""}}]}`
	if _, err := admin.AdmissionregistrationV1().MutatingWebhookConfigurations().Patch(t.Context(), m.Configuration, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	await(t, "both CAs again", both)
	if c, err := m.GetCertificate(nil); err != nil || c.Leaf.CheckSignatureFrom(old) != nil {
		t.Errorf("what is served (%v) is not of the old CA", err)
	}
	if err := m.Ready(); err != nil {
		t.Errorf("not ready: %v", err)
	}
}

// After a rotation the old CA stays trusted, but whoever takes it out (its key may have leaked) is obeyed.
func TestOldCAMayBeTakenOut(t *testing.T) {
	t.Parallel()
	m := place(t)
	configure(t, &m)
	start(t, &m)
	await(t, "ready", m.Ready)
	if err := admin.CoreV1().Secrets(m.Namespace).Delete(t.Context(), m.SecretName, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	var current *x509.Certificate
	await(t, "a certificate of the new CA is served", func() (err error) {
		if current, err = secretCA(t.Context(), &m); err != nil {
			return err
		}
		c, err := m.GetCertificate(nil)
		if err != nil {
			return err
		}
		return c.Leaf.CheckSignatureFrom(current)
	})
	// Out of the first webhook, and everything out of the second, so that a repair can be awaited.
	only := base64.StdEncoding.EncodeToString(encode([]*x509.Certificate{current}))
	patch := fmt.Sprintf(`{"webhooks":[{"name":"one.example.com","clientConfig":{"caBundle":%q}},{"name":"two.example.com","clientConfig":{"caBundle":""}}]}`, only)
	if _, err := admin.AdmissionregistrationV1().MutatingWebhookConfigurations().Patch(t.Context(), m.Configuration, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	await(t, "the repair", func() error {
		one, two, err := bundles(t.Context(), &m)
		if err != nil || len(two) == 0 {
			return fmt.Errorf("the second bundle is empty (%v)", err)
		}
		if want := encode([]*x509.Certificate{current}); !bytes.Equal(one, want) || !bytes.Equal(two, want) {
			t.Errorf("the bundles are\n%s\n%s\nwant both to be the Secret's CA", one, two)
		}
		return nil
	})
}

// Before the configuration is there the replica is not ready and says why; then it comes up by itself.
func TestWaitsForTheConfiguration(t *testing.T) {
	t.Parallel()
	m := place(t)
	if err := m.Ready(); err == nil {
		t.Error("it is ready before its start")
	}
	start(t, &m)
	want := fmt.Sprintf(`mutatingwebhookconfigurations.admissionregistration.k8s.io %q not found`, m.Configuration)
	await(t, "the reason", func() error { return says(m.Ready(), want) })
	configure(t, &m)
	await(t, "ready", m.Ready)
}

// A replica without rights is not ready, and says which right it lacks; with them it comes up.
func TestSaysWhichRightItLacks(t *testing.T) {
	t.Parallel()
	m := place(t)
	configure(t, &m)
	user, err := env.AddUser(envtest.User{Name: m.Namespace}, nil)
	if err != nil {
		t.Fatal(err)
	}
	m.RESTConfig = user.Config()
	start(t, &m)
	await(t, "the reason", func() error {
		return says(m.Ready(), `secrets "ca" is forbidden: User "`+m.Namespace+`" cannot get resource "secrets"`)
	})
	grant(t, &m, "", "secrets", "ca", "get", "list", "watch", "update")
	grant(t, &m, "", "secrets", "", "create")
	await(t, "the next reason", func() error {
		return says(m.Ready(), `cannot get resource "mutatingwebhookconfigurations"`)
	})
	grant(t, &m, "admissionregistration.k8s.io", "mutatingwebhookconfigurations", m.Configuration, "get")
	await(t, "the last reason", func() error {
		return says(m.Ready(), `cannot patch resource "mutatingwebhookconfigurations"`)
	})
	// Without list and watch it polls.
	grant(t, &m, "admissionregistration.k8s.io", "mutatingwebhookconfigurations", m.Configuration, "patch")
	await(t, "ready", m.Ready)
}

func TestRefusesToStartWithoutNames(t *testing.T) {
	m := Managed{RESTConfig: env.Config, Namespace: "x", SecretName: "x", Configuration: "x"}
	if err := says(m.Start(context.Background()), "DNS names"); err != nil {
		t.Error(err)
	}
}

// A leaf gives way when it is of another CA, and when a clock that was set makes its times wrong.
func TestDue(t *testing.T) {
	ca, next := newCA(t, 0, 10*time.Hour), newCA(t, 0, 10*time.Hour)
	leaf := &x509.Certificate{NotBefore: time.Now(), NotAfter: time.Now().Add(6 * time.Hour)}
	g := &gate{leaf: leaf, issuers: []*x509.Certificate{ca}}
	for name, c := range map[string]struct {
		current *x509.Certificate
		after   time.Duration
		want    bool
	}{
		"new":                  {ca, time.Minute, false},
		"renewed by the timer": {ca, 4*time.Hour + time.Minute, false},
		"the timer was late":   {ca, 5*time.Hour + time.Minute, true},
		"the clock was ahead":  {ca, -time.Minute, true},
		"rotated":              {next, time.Minute, true},
	} {
		if got := g.due(c.current, leaf.NotBefore.Add(c.after)); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

// A clock that was set, or a machine that slept, shows in a certificate whose time is not now. It is not served for
// long: the next look has another one made.
func TestClockJumps(t *testing.T) {
	for name, c := range map[string]struct {
		jump time.Duration // of the certificate's times; the clock's jump is the other way
		want string
	}{
		"set back":         {time.Hour, "was the clock set back?"},
		"ahead, or asleep": {-DefaultLeafDuration - time.Hour, "the serving certificate expired on"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := place(t)
			configure(t, &m)
			start(t, &m)
			await(t, "ready", m.Ready)
			before, err := m.source.GetCertificate(nil)
			if err != nil {
				t.Fatal(err)
			}
			leaf := *before.Leaf
			leaf.NotBefore, leaf.NotAfter = leaf.NotBefore.Add(c.jump), leaf.NotAfter.Add(c.jump)
			m.mu.Lock()
			m.gate.mu.Lock()
			before.Leaf, m.gate.leaf, m.serving = &leaf, &leaf, before
			m.gate.mu.Unlock()
			m.mu.Unlock()
			if err := says(m.Ready(), c.want); err != nil {
				t.Error(err)
			}
			await(t, "ready again", m.Ready)
			after, err := m.GetCertificate(nil)
			if err != nil || after.Leaf.Equal(&leaf) || invalid(after, time.Now()) != nil {
				t.Errorf("it serves the same certificate, or one that is not valid now (%v)", err)
			}
		})
	}
}

func says(err error, want string) error {
	if err == nil || !strings.Contains(err.Error(), want) {
		return fmt.Errorf("error is %v, want %q", err, want)
	}
	return nil
}

// grant allows the verbs on a resource to the user that is called as the namespace, by name if that is not empty.
func grant(t *testing.T, m *Managed, group, resource, name string, verbs ...string) {
	t.Helper()
	meta := metav1.ObjectMeta{Name: fmt.Sprintf("%s-%d", m.Namespace, count.Add(1))}
	rule := rbacv1.PolicyRule{APIGroups: []string{group}, Resources: []string{resource}, Verbs: verbs}
	if name != "" {
		rule.ResourceNames = []string{name}
	}
	if _, err := admin.RbacV1().ClusterRoles().Create(t.Context(), &rbacv1.ClusterRole{ObjectMeta: meta, Rules: []rbacv1.PolicyRule{rule}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	binding := &rbacv1.ClusterRoleBinding{
		ObjectMeta: meta,
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.UserKind, Name: m.Namespace}},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: meta.Name},
	}
	if _, err := admin.RbacV1().ClusterRoleBindings().Create(t.Context(), binding, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

package certs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

const (
	// apiServerLag is how long the client of these tests goes on with an old bundle.
	apiServerLag = time.Second
	// clockLag is how far its clock is behind.
	clockLag = time.Second
)

// While the CA rotates, for whatever reason, a client that trusts what the configuration had up to a
// second ago, and whose clock is a second behind, never fails to shake hands with either replica, nor
// with one that starts in the middle.
func TestRotatesWithoutAFailedHandshake(t *testing.T) {
	patch := func(ctx context.Context, m *Managed, p string) error {
		_, err := admin.CoreV1().Secrets(m.Namespace).Patch(ctx, m.SecretName, types.MergePatchType, []byte(p), metav1.PatchOptions{})
		return err
	}
	ca, key := newCAWithKey(t, -2*time.Hour, -time.Hour)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	expired, err := json.Marshal(map[string]map[string][]byte{"data": {
		corev1.TLSCertKey:       encode([]*x509.Certificate{ca}),
		corev1.TLSPrivateKeyKey: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}),
	}})
	if err != nil {
		t.Fatal(err)
	}
	for name, rotate := range map[string]func(ctx context.Context, m *Managed) error{
		"Secret deleted": func(ctx context.Context, m *Managed) error {
			return admin.CoreV1().Secrets(m.Namespace).Delete(ctx, m.SecretName, metav1.DeleteOptions{})
		},
		"key broken":     func(ctx context.Context, m *Managed) error { return patch(ctx, m, `{"data":{"tls.key":"AAAA"}}`) },
		"CA expired":     func(ctx context.Context, m *Managed) error { return patch(ctx, m, string(expired)) },
		"Secret emptied": func(ctx context.Context, m *Managed) error { return patch(ctx, m, `{"data":null}`) },
		// The authority looks at the CA's age every ten seconds and whenever the Secret changes.
		"CA near its end": func(ctx context.Context, m *Managed) error {
			old, err := secretCA(ctx, m)
			for err == nil && ctx.Err() == nil {
				time.Sleep(200 * time.Millisecond)
				if err := patch(ctx, m, fmt.Sprintf(`{"metadata":{"annotations":{"look":"%d"}}}`, time.Now().UnixNano())); err != nil {
					return err
				}
				if now, err := secretCA(ctx, m); err != nil || !now.Equal(old) {
					return err
				}
			}
			return errors.Join(err, ctx.Err())
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			first, second, late := place(t), Managed{}, Managed{}
			configure(t, &first)
			// A leaf is renewed after 12 seconds, several times during the test; the CA after 36.
			first.CADuration, first.LeafDuration = 54*time.Second, 18*time.Second
			copyTo(&first, &second)
			copyTo(&first, &late)
			c := newClient(t, &first)
			c.use(t, &first, &second)
			old, err := secretCA(t.Context(), &first)
			if err != nil {
				t.Fatal(err)
			}

			if err := rotate(t.Context(), &first); err != nil {
				t.Fatal(err)
			}
			c.use(t, &late)
			await(t, "every replica serves a certificate of the new CA", func() error {
				ca, err := secretCA(t.Context(), &first)
				if err != nil {
					return err
				}
				if ca.Equal(old) {
					return errors.New("the Secret has the old CA")
				}
				return c.allOf(ca)
			})
			c.stop()
			if c.done < 30 || len(c.failures) > 0 {
				t.Errorf("%d handshakes (want at least 30), %d failed (want none): %v", c.done, len(c.failures), c.failures)
			}
			t.Logf("%d handshakes", c.done)
		})
	}
}

// The same client does see failures if the API servers are given no time: the test above can fail.
func TestWithoutPropagationHandshakesFail(t *testing.T) {
	t.Parallel()
	m := place(t)
	configure(t, &m)
	m.Propagation = time.Nanosecond
	c := newClient(t, &m)
	c.use(t, &m)
	if err := admin.CoreV1().Secrets(m.Namespace).Delete(t.Context(), m.SecretName, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	await(t, "a failed handshake", func() error {
		c.mu.Lock()
		defer c.mu.Unlock()
		if len(c.failures) == 0 {
			return errors.New("none")
		}
		return nil
	})
	c.stop()
}

// copyTo makes another replica.
func copyTo(m, other *Managed) {
	other.RESTConfig, other.Namespace, other.SecretName, other.DNSNames, other.Configuration = m.RESTConfig, m.Namespace, m.SecretName, m.DNSNames, m.Configuration
	other.CADuration, other.LeafDuration, other.Propagation, other.Log = m.CADuration, m.LeafDuration, m.Propagation, m.Log
}

// client is what an API server is to a webhook: it shakes hands all the time.
type client struct {
	m    *Managed
	end  context.CancelFunc
	ctx  context.Context
	work sync.WaitGroup

	mu       sync.Mutex
	roots    *x509.CertPool
	served   map[*Managed]*x509.Certificate // newest
	done     int
	failures []string
}

func newClient(t *testing.T, m *Managed) *client {
	c := &client{m: m, served: map[*Managed]*x509.Certificate{}}
	c.ctx, c.end = context.WithCancel(context.Background())
	c.refresh()
	c.work.Go(func() {
		for c.ctx.Err() == nil {
			time.Sleep(apiServerLag)
			c.refresh()
		}
	})
	t.Cleanup(c.stop)
	return c
}

func (c *client) stop() {
	c.end()
	c.work.Wait()
}

// refresh reads the bundle as an API server would.
func (c *client) refresh() {
	bundle, _, err := bundles(context.Background(), c.m)
	if err != nil {
		return // goes on with the old one
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(bundle)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.roots = roots
}

// use starts replicas and, when they are ready and a client whose clock is behind can think so, too,
// shakes hands with them.
func (c *client) use(t *testing.T, replicas ...*Managed) {
	t.Helper()
	for _, m := range replicas {
		start(t, m)
	}
	for _, m := range replicas {
		await(t, "the replica is ready", m.Ready)
		await(t, "its certificate is as old as clocks differ", func() error {
			if leaf, err := m.GetCertificate(nil); err != nil || time.Since(leaf.Leaf.NotBefore) < clockLag+apiServerLag {
				return fmt.Errorf("too new (%v)", err)
			}
			return nil
		})
		l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{GetCertificate: m.GetCertificate})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					_ = conn.(*tls.Conn).Handshake()
					_ = conn.Close()
				}()
			}
		}()
		c.work.Go(func() {
			for c.ctx.Err() == nil {
				c.shake(m, l.Addr())
				time.Sleep(50 * time.Millisecond)
			}
		})
	}
}

func (c *client) shake(m *Managed, to net.Addr) {
	c.mu.Lock()
	roots := c.roots
	c.mu.Unlock()
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: patience}, to.Network(), to.String(), &tls.Config{
		RootCAs: roots, ServerName: m.DNSNames[0], Time: func() time.Time { return time.Now().Add(-clockLag) },
	})
	c.mu.Lock()
	defer c.mu.Unlock()
	c.done++
	if err != nil {
		c.failures = append(c.failures, err.Error())
		return
	}
	c.served[m] = conn.ConnectionState().PeerCertificates[0]
	_ = conn.Close()
}

// allOf gives nil if all replicas have served a certificate of the CA last.
func (c *client) allOf(ca *x509.Certificate) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for m, leaf := range c.served {
		if err := leaf.CheckSignatureFrom(ca); err != nil {
			return fmt.Errorf("%s: %w", m.Namespace, err)
		}
	}
	return nil
}

// Package certs makes and rotates the webhook's serving certificate: cert-manager's library signs it by
// a CA in a Secret that all replicas share, and the webhook configuration is made to trust that CA
// before any replica serves a certificate of it. Or it serves the one that somebody else keeps in files.
package certs

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	servertls "github.com/cert-manager/cert-manager/pkg/server/tls"
	"github.com/cert-manager/cert-manager/pkg/server/tls/authority"
	"github.com/go-logr/logr"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

const (
	// DefaultCADuration gives a rotation every eight months: after two thirds of it.
	DefaultCADuration = 365 * 24 * time.Hour
	// DefaultLeafDuration gives each replica a new certificate every five days, after two thirds of it. One
	// without contact to the API server has the rest, over two days, to get it back.
	DefaultLeafDuration = 7 * 24 * time.Hour
	// DefaultPropagation is some hundred times what the watch of an API server takes to bring it a changed
	// webhook configuration, and more than clocks set by NTP differ.
	DefaultPropagation = 5 * time.Second
)

// commonName is the subject of every CA.
const commonName = "meshvirt-webhook-ca"

// Managed is a serving certificate that looks after itself. Any number of replicas with the same fields
// may run.
type Managed struct {
	RESTConfig *rest.Config
	// Namespace and SecretName name the Secret with the CA. It is made if it is not there, and made
	// anew if its content is broken, no CA, or has less than a third of its life left.
	Namespace, SecretName string
	// DNSNames are those of the serving certificate; at least one.
	DNSNames []string
	// Configuration names the MutatingWebhookConfiguration that must trust the CA. It need not exist yet.
	Configuration string
	// CADuration and LeafDuration are how long certificates are valid. Zero means the default. A leaf
	// never outlives its CA; CADuration should be over three times LeafDuration, or that shortens leaves.
	CADuration, LeafDuration time.Duration
	// Propagation is the time that API servers are given to follow: for a CA from when it is in the
	// configuration until a certificate of it may be served, for a renewed certificate from its first
	// moment until it is served, since their clocks may be behind. Zero means the default.
	Propagation time.Duration
	// Log is told of every change and problem. Nil means slog.Default.
	Log *slog.Logger

	mu      sync.Mutex
	gate    *gate
	source  *servertls.DynamicSource
	serving *tls.Certificate
}

// Start keeps the certificate valid until ctx ends, then returns nil. Problems with the API server are
// no errors: they are logged, tried again, and told by Ready.
func (m *Managed) Start(ctx context.Context) error {
	if m.Namespace == "" || m.SecretName == "" || m.Configuration == "" || len(m.DNSNames) == 0 {
		return errors.New("a managed certificate needs a namespace, a Secret's name, a configuration's name and DNS names")
	}
	client, err := kubernetes.NewForConfig(m.RESTConfig)
	if err != nil {
		return err
	}
	log := m.Log
	if log == nil {
		log = slog.Default()
	}
	m.mu.Lock()
	m.gate = &gate{
		inner: &authority.DynamicAuthority{
			SecretNamespace: m.Namespace, SecretName: m.SecretName,
			RESTConfig: m.RESTConfig, CommonName: commonName,
			CADuration: or(m.CADuration, DefaultCADuration), LeafDuration: or(m.LeafDuration, DefaultLeafDuration),
		},
		store:       &store{client, m.Namespace, m.SecretName, m.Configuration},
		propagation: m.propagation(),
		log:         log,
	}
	m.source = &servertls.DynamicSource{DNSNames: m.DNSNames, Authority: m.gate, RetryInterval: retryInterval / 4}
	m.mu.Unlock()
	// The library tells of every try while the CA is held back; its errors are logged at any level.
	quiet := logr.FromSlogHandler(log.Handler()).V(1)
	return m.source.Start(logr.NewContext(ctx, quiet))
}

// GetCertificate is for tls.Config. It gives an error until API servers trust what it would give.
func (m *Managed) GetCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.source == nil {
		return nil, errors.New("the certificate's source is not started")
	}
	newest, err := m.source.GetCertificate(hello)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, m.gate.problem())
	}
	now := time.Now()
	if m.serving == nil || now.Sub(newest.Leaf.NotBefore) >= m.propagation() || invalid(m.serving, now) != nil {
		m.serving = newest
	}
	return m.serving, nil
}

// Ready gives nil if API servers accept the certificate that is served, or else the reason why not.
func (m *Managed) Ready() error {
	c, err := m.GetCertificate(nil)
	if err != nil {
		return err
	}
	if err := invalid(c, time.Now()); err != nil {
		return errors.Join(err, m.gate.problem())
	}
	return m.gate.trusts(c.Leaf)
}

// invalid gives the reason why the certificate is not valid now.
func invalid(c *tls.Certificate, now time.Time) error {
	if now.Before(c.Leaf.NotBefore) {
		return fmt.Errorf("the serving certificate is not valid before %s: was the clock set back?", c.Leaf.NotBefore)
	}
	if now.After(c.Leaf.NotAfter) {
		return fmt.Errorf("the serving certificate expired on %s", c.Leaf.NotAfter)
	}
	return nil
}

func (m *Managed) propagation() time.Duration { return or(m.Propagation, DefaultPropagation) }

func or(d, otherwise time.Duration) time.Duration {
	if d == 0 {
		return otherwise
	}
	return d
}

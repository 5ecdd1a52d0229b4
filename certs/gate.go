package certs

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/cert-manager/cert-manager/pkg/server/tls"
	"github.com/cert-manager/cert-manager/pkg/server/tls/authority"
	"golang.org/x/sync/errgroup"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"
)

const (
	// checkInterval is how often the Secret and the configuration are looked at without an event of
	// either: watches may be forbidden or have missed something. The authority's own interval is the same.
	checkInterval = 10 * time.Second
	// retryInterval is how soon a failed look is repeated.
	retryInterval = time.Second
	// pause is the least time between two looks, against a flood of events: somebody may write back
	// whatever we write.
	pause = 200 * time.Millisecond
	// maxIssuers is how many CAs that have signed for this replica it keeps in the bundle. The certificate
	// served is of the last one or, while that one rests, of the one before; more is for rotations in a row.
	maxIssuers = 4
)

// gate is the authority of this replica: that of cert-manager, whose signatures it holds back until the
// API servers trust the CA that made them.
type gate struct {
	inner       *authority.DynamicAuthority
	store       *store
	propagation time.Duration
	log         *slog.Logger

	mu       sync.Mutex
	watchers []chan<- struct{}
	trusted  []trust
	issuers  []*x509.Certificate // newest last
	leaf     *x509.Certificate   // signed last
	err      error               // of the last look
}

var _ tls.Authority = (*gate)(nil)

// trust is a CA that all webhooks of the configuration have trusted, as far as this process has seen, since.
type trust struct {
	ca    *x509.Certificate
	since time.Time
}

// Run implements tls.Authority.
func (g *gate) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return g.inner.Run(ctx) })
	group.Go(func() error { return g.keepTrust(ctx) })
	return group.Wait()
}

// WatchRotation implements tls.Authority. Unlike that of the inner authority, a notice means that
// Sign is ready to sign with the new CA.
func (g *gate) WatchRotation(ch chan<- struct{}) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.watchers = append(g.watchers, ch)
}

// StopWatchingRotation implements tls.Authority.
func (g *gate) StopWatchingRotation(ch chan<- struct{}) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.watchers = slices.DeleteFunc(g.watchers, func(c chan<- struct{}) bool { return c == ch })
}

// Sign implements tls.Authority. The caller keeps what it serves and tries again if the error is
// authority.ErrCertificateNotAvailable. That the check is on the result makes it hold for renewals
// in the middle of a rotation too, and whichever CA the inner authority has got to.
func (g *gate) Sign(template *x509.Certificate) (*x509.Certificate, error) {
	leaf, err := g.inner.Sign(template)
	if err != nil {
		return nil, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	i := slices.IndexFunc(g.trusted, func(t trust) bool { return leaf.CheckSignatureFrom(t.ca) == nil })
	if i < 0 {
		return nil, fmt.Errorf("%w: the webhook configuration does not have its CA yet", authority.ErrCertificateNotAvailable)
	}
	if time.Since(g.trusted[i].since) < g.propagation {
		return nil, fmt.Errorf("%w: the API servers are given %s to learn of its CA", authority.ErrCertificateNotAvailable, g.propagation)
	}
	ca := g.trusted[i].ca
	g.issuers = append(slices.DeleteFunc(g.issuers, ca.Equal), ca)
	g.issuers = g.issuers[max(0, len(g.issuers)-maxIssuers):]
	g.leaf = leaf
	g.log.Info("issued a serving certificate", "ca", name(ca), "notAfter", leaf.NotAfter)
	return leaf, nil
}

// keepTrust keeps what API servers trust right until ctx ends.
func (g *gate) keepTrust(ctx context.Context) error {
	changed := make(chan struct{}, 1)
	g.inner.WatchRotation(changed)
	defer g.inner.StopWatchingRotation(changed)
	stop, err := g.watchConfiguration(ctx, changed)
	if err != nil {
		return err
	}
	defer stop()
	for {
		next := g.look(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-time.After(next):
		}
	}
}

// watchConfiguration sends to changed, if it has room, when the configuration has changed.
func (g *gate) watchConfiguration(ctx context.Context, changed chan<- struct{}) (stop func(), err error) {
	notice := func() { tell(changed) }
	factory := informers.NewSharedInformerFactoryWithOptions(g.store.client, 0, informers.WithTweakListOptions(func(o *metav1.ListOptions) {
		// RBAC allows list and watch of one name to who asks for just that.
		o.FieldSelector = fields.OneTermEqualSelector(metav1.ObjectNameField, g.store.configuration).String()
	}))
	_, err = factory.Admissionregistration().V1().MutatingWebhookConfigurations().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { notice() },
		UpdateFunc: func(any, any) { notice() },
		DeleteFunc: func(any) { notice() },
	})
	if err != nil {
		return nil, fmt.Errorf("watch MutatingWebhookConfiguration %s: %w", g.store.configuration, err)
	}
	factory.StartWithContext(ctx)
	return factory.Shutdown, nil
}

// look reads the Secret's CA, makes API servers trust it and those that signed for this replica, and has a new
// certificate issued if it is time. It gives the time until the next look.
func (g *gate) look(ctx context.Context) time.Duration {
	current, secretErr := g.store.currentCA(ctx)
	must := g.issuersNow()
	if current != nil && !contains(must, current) {
		must = append(must, current)
	}
	var before, trusted []*x509.Certificate
	var configurationErr error
	// Without the Secret, the CA of the certificate that is served must still be trusted.
	if len(must) > 0 {
		before, trusted, configurationErr = g.store.ensure(ctx, must)
	}
	err := errors.Join(secretErr, configurationErr)
	if ctx.Err() != nil {
		return 0
	}

	g.mu.Lock()
	defer g.mu.Unlock()
	if err != nil && (g.err == nil || g.err.Error() != err.Error()) {
		g.log.Warn("the certificate waits, trying again", "error", err)
	} else if err == nil && g.err != nil {
		g.log.Info("the certificate waits no longer")
	}
	g.err = err
	if len(must) > 0 && configurationErr == nil {
		g.seen(before, time.Now()) // what was missing starts anew
		g.seen(trusted, time.Now())
		if !containsAll(before, must) {
			g.log.Info("stored CAs in the webhook configuration", "configuration", g.store.configuration, "cas", names(trusted))
		}
	}
	if err != nil {
		return retryInterval
	}
	if g.mayIssue(current) && g.due(current, time.Now()) {
		for _, ch := range g.watchers {
			tell(ch)
		}
		return retryInterval
	}
	if !g.mayIssue(current) {
		return min(g.propagation, retryInterval)
	}
	return checkInterval
}

// seen notes what the configuration trusts now; the caller holds the lock.
func (g *gate) seen(cas []*x509.Certificate, now time.Time) {
	var all []trust
	for _, ca := range cas {
		t := trust{ca, now}
		if i := slices.IndexFunc(g.trusted, func(t trust) bool { return t.ca.Equal(ca) }); i >= 0 {
			t = g.trusted[i]
		}
		all = append(all, t)
	}
	g.trusted = all
}

// mayIssue reports whether Sign would pass a signature of the CA; the caller holds the lock.
func (g *gate) mayIssue(ca *x509.Certificate) bool {
	return slices.ContainsFunc(g.trusted, func(t trust) bool { return t.ca.Equal(ca) && time.Since(t.since) >= g.propagation })
}

// due reports whether the leaf should give way to one of the current CA: because it is of another, or
// because its time is not what its renewal's timer took it to be: the clock was set, or the machine slept.
// Normally the leaf is renewed after two thirds of its life. The first is not asked for here. The caller
// holds the lock.
func (g *gate) due(current *x509.Certificate, now time.Time) bool {
	if g.leaf == nil {
		return false
	}
	late := g.leaf.NotAfter.Add(-g.leaf.NotAfter.Sub(g.leaf.NotBefore) / 6)
	return !g.issuers[len(g.issuers)-1].Equal(current) || now.Before(g.leaf.NotBefore) || now.After(late)
}

// issuersNow gives the CAs whose certificates this replica serves. It is one, except while a new certificate
// rests (see Managed.GetCertificate).
func (g *gate) issuersNow() []*x509.Certificate {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	if g.leaf != nil && now.Sub(g.leaf.NotBefore) >= g.propagation {
		g.issuers = g.issuers[len(g.issuers)-1:]
	}
	return slices.DeleteFunc(slices.Clone(g.issuers), func(c *x509.Certificate) bool { return now.After(c.NotAfter) })
}

// trusts reports, with the reason, whether API servers trust the CA that signed the leaf.
func (g *gate) trusts(leaf *x509.Certificate) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !slices.ContainsFunc(g.trusted, func(t trust) bool { return leaf.CheckSignatureFrom(t.ca) == nil }) {
		return errors.Join(errors.New("the webhook configuration does not have the CA of the serving certificate"), g.err)
	}
	return nil
}

// problem gives the reason why no certificate was issued.
func (g *gate) problem() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.err != nil {
		return g.err
	}
	return fmt.Errorf("the API servers are given %s to learn of its CA", g.propagation)
}

// tell sends a notice unless one is waiting already.
func tell(ch chan<- struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

func names(cas []*x509.Certificate) []string {
	var all []string
	for _, ca := range cas {
		all = append(all, name(ca))
	}
	return all
}

// name tells CAs apart in logs, where all have the same subject.
func name(ca *x509.Certificate) string { return fmt.Sprintf("%x", ca.SubjectKeyId) }

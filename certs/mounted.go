package certs

import (
	"context"
	"crypto/tls"
	"fmt"
	"path/filepath"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/certwatcher"
)

// Mounted is a serving certificate that somebody else keeps: the files tls.crt and tls.key of a directory, as a
// mounted Secret of type kubernetes.io/tls has them. It is read again when the files change; a pair that is
// broken is logged, and the one before it goes on being served.
type Mounted struct {
	watcher *certwatcher.CertWatcher
}

// NewMounted reads the pair. Its error names the directory.
func NewMounted(dir string) (*Mounted, error) {
	watcher, err := certwatcher.New(filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key"))
	if err != nil {
		return nil, fmt.Errorf("%q, want tls.crt and its tls.key there: %w", dir, err)
	}
	return &Mounted{watcher}, nil
}

// Start keeps up with the files until ctx ends, then returns nil.
func (m *Mounted) Start(ctx context.Context) error { return m.watcher.Start(ctx) }

// GetCertificate is for tls.Config. A certificate that is not valid now is given too: whoever asks is to say why it is refused.
func (m *Mounted) GetCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	return m.watcher.GetCertificate(hello)
}

// Ready gives nil if the certificate is valid now, or else the reason why not. Whether API servers trust it is
// for whoever wrote the configuration's caBundle to know.
func (m *Mounted) Ready() error {
	c, err := m.watcher.GetCertificate(nil)
	if err != nil {
		return err
	}
	return invalid(c, time.Now())
}

package apiserver

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// loader creates pods at a steady rate and counts what becomes of them, while a certificate changes.
type loader struct {
	*Cluster
	service   *frontEnd
	namespace string
	pod       *corev1.Pod

	admitted, unadapted int
	failures            []error
}

// until creates pods until done reports true. Every five go to a new port of the Service, which is a new connection,
// and so a handshake with what is served and trusted by then.
func (l *loader) until(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !done(); {
		if time.Now().After(deadline) {
			t.Fatalf("not after %s: %s", patience, what)
		}
		repoint(t, l.Cluster, l.service.listen(t))
		for range 5 {
			pod, err := l.Admit(t.Context(), l.namespace, l.pod)
			if l.admitted++; err != nil {
				l.failures = append(l.failures, err)
			} else if !adapted(pod) {
				l.unadapted++
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
}

// few creates twenty pods.
func (l *loader) few(t *testing.T) {
	t.Helper()
	rounds := 0
	l.until(t, "twenty pods", func() bool { rounds++; return rounds > 4 })
}

func (l *loader) wantNoFailure(t *testing.T) {
	t.Helper()
	if len(l.failures)+l.unadapted > 0 {
		t.Errorf("of %d pods %d were refused and %d not adapted, want none: %v", l.admitted, len(l.failures), l.unadapted, l.failures[:min(3, len(l.failures))])
	}
	if n := l.service.connections.Load(); n < 10 {
		t.Errorf("the API server made %d connections to the webhook, want at least 10", n)
	}
	t.Logf("%d pods, %d connections", l.admitted, l.service.connections.Load())
}

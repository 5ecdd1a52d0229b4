package certs

import (
	"crypto/x509"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestParse(t *testing.T) {
	a, b := newCA(t, 0, time.Hour), newCA(t, 0, time.Hour)
	broken := "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
	text := slices.Concat([]byte("# a remark\n"), encode([]*x509.Certificate{a}), []byte(broken), encode([]*x509.Certificate{b, a}), []byte("junk"))
	if diff := cmp.Diff([]*x509.Certificate{a, b}, parse(text)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestMerge(t *testing.T) {
	day := 24 * time.Hour
	current, other, future := newCA(t, -time.Minute, day), newCA(t, -day, day), newCA(t, day, 2*day)
	justExpired, expired := newCA(t, -day, -time.Minute), newCA(t, -day, -2*expiredGrace)
	for name, c := range map[string]struct{ have, must, want []*x509.Certificate }{
		"the first":              {nil, []*x509.Certificate{current}, []*x509.Certificate{current}},
		"others stay":            {[]*x509.Certificate{other, future}, []*x509.Certificate{current}, []*x509.Certificate{other, future, current}},
		"each once":              {[]*x509.Certificate{current, other, current}, []*x509.Certificate{current}, []*x509.Certificate{current, other}},
		"expired ones go":        {[]*x509.Certificate{expired, justExpired}, []*x509.Certificate{current}, []*x509.Certificate{justExpired, current}},
		"unless they are in use": {[]*x509.Certificate{expired}, []*x509.Certificate{expired, current}, []*x509.Certificate{expired, current}},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, merge(c.have, c.must, time.Now())); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

// A Secret that is deleted again and again must not fill the configuration.
func TestMergeIsBounded(t *testing.T) {
	oldest := newCA(t, -100*time.Hour, time.Hour)
	have := []*x509.Certificate{oldest}
	for i := range maxCAs + 3 {
		have = append(have, newCA(t, time.Duration(-50+i)*time.Hour, time.Hour))
	}
	current := newCA(t, 0, time.Hour)
	got := merge(have, []*x509.Certificate{oldest, current}, time.Now())
	// The oldest is in use, so the next ones go.
	want := slices.Concat([]*x509.Certificate{oldest}, have[len(have)-(maxCAs-2):], []*x509.Certificate{current})
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

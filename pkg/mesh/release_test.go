package mesh

import (
	"strings"
	"testing"
)

func TestReleaseOf(t *testing.T) {
	for image, want := range map[string]release{
		"docker.io/istio/proxyv2:1.18.7":                         {1, 18, 7},
		"docker.io/istio/proxyv2:1.31.0-rc.0":                    {1, 31, 0},
		"proxyv2:v1.22.8-distroless":                             {1, 22, 8},
		"registry.example:5000/istio/proxyv2:1.9":                {1, 9, -1},
		"registry.example:5000/istio/proxyv2":                    {},
		"gcr.io/istio-testing/proxyv2:1.24-alpha.0123abcd":       {1, 24, -1},
		"istio/proxyv2:1.20.1@sha256:" + strings.Repeat("0", 64): {1, 20, 1},
		"istio/proxyv2@sha256:" + strings.Repeat("0", 64):        {},
		"istio/proxyv2:latest":                                   {},
		"istio/proxyv2:1":                                        {},
		"":                                                       {},
	} {
		if got := releaseOf(image); got != want {
			t.Errorf("releaseOf(%q) = %v, want %v", image, got, want)
		}
	}
	for _, tt := range []struct {
		r    release
		want bool
	}{{release{1, 21, 0}, true}, {release{1, 22, 0}, false}, {release{2, 0, 0}, false}, {release{0, 7, 1}, true}, {release{}, false}} {
		if got := tt.r.before(1, 22); got != tt.want {
			t.Errorf("%v before 1.22: %t", tt.r, got)
		}
	}
}

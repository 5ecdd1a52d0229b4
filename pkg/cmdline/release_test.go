package cmdline

import (
	"strings"
	"testing"
)

func TestReleaseOf(t *testing.T) {
	for image, want := range map[string]Release{
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
		if got := ReleaseOf(image); got != want {
			t.Errorf("ReleaseOf(%q) = %v, want %v", image, got, want)
		}
	}
	for _, tt := range []struct {
		r    Release
		want bool
	}{{Release{1, 21, 0}, true}, {Release{1, 22, 0}, false}, {Release{2, 0, 0}, false}, {Release{0, 7, 1}, true}, {Release{}, false}} {
		if got := tt.r.Before(1, 22); got != tt.want {
			t.Errorf("%v before 1.22: %t", tt.r, got)
		}
	}
}

func TestReleasesInOrder(t *testing.T) {
	var last Release
	for _, tag := range []string{"0.7.1", "v1.9", "1.9.0", "1.9.1", "1.10.0", "2.0.0"} {
		r := ParseRelease(tag)
		if last.Compare(r) >= 0 || r.Compare(last) <= 0 || r.Compare(r) != 0 {
			t.Errorf("%v is not behind %v", r, last)
		}
		if want := tag != "v1.9"; r.Exact() != want {
			t.Errorf("%s: exact %t, want %t", tag, r.Exact(), want)
		}
		last = r
	}
	if ParseRelease("latest").Exact() {
		t.Error("an unknown release is exact")
	}
}

package istio

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestAmbientWithoutReroute: taking out the rules of the interface gives what was recorded without it.
func TestAmbientWithoutReroute(t *testing.T) {
	got, err := Ambient(AmbientOptions{})
	if err != nil {
		t.Fatal(err)
	}
	want, err := ambient.ReadFile("ambient/1.29.6/inpod-default.iptables-save")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got.IPv4); diff != "" {
		t.Errorf("(-recorded +derived)\n%s", diff)
	}
	with, err := Ambient(AmbientOptions{Reroute: true})
	if err != nil || !strings.Contains(with.IPv4, "-A ISTIO_PRERT -i k6t-eth0 -p tcp -j REDIRECT") {
		t.Errorf("got %q, %v, want rules for the interface", with.IPv4, err)
	}
}

func TestAmbientNotRecorded(t *testing.T) {
	if _, err := Ambient(AmbientOptions{Native: true, DualStack: true}); err == nil || !strings.Contains(err.Error(), "not recorded") {
		t.Errorf("got error %v, want one that says so", err)
	}
}

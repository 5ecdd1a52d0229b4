package rules

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestObserve(t *testing.T) {
	dir := t.TempDir()
	conf := filepath.Join(dir, "resolv.conf")
	if err := os.WriteFile(conf, []byte("nameserver 10.96.0.10\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	ns := newNetns(t)
	observe := func(conf string) (pod Pod) {
		t.Helper()
		if err := ns.do(0, func() (err error) { pod, err = Observe(conf); return err }); err != nil {
			t.Fatal(err)
		}
		return pod
	}
	check := func(got, want Pod) {
		t.Helper()
		if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
	check(observe(conf), Pod{Nameservers: addrs("10.96.0.10")})
	ns.run(t, "link set lo up\naddr add ::6/128 dev lo", "ip", "-batch", "-")
	check(observe(filepath.Join(dir, "none")), Pod{IPv6: true})
	if _, err := Observe(dir); err == nil {
		t.Error("resolv.conf is a directory: want an error")
	}
}

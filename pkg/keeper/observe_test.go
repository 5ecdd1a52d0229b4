package keeper

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/meshvirt/meshvirt/pkg/rules"
	"github.com/meshvirt/meshvirt/test/lab"
)

func TestObserve(t *testing.T) {
	dir := t.TempDir()
	conf := filepath.Join(dir, "resolv.conf")
	if err := os.WriteFile(conf, []byte("nameserver 10.96.0.10\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	ns := lab.NewNetns(t)
	observe := func(conf string) (pod rules.Pod) {
		t.Helper()
		if err := ns.Do(0, func() (err error) { pod, err = Observe(conf); return err }); err != nil {
			t.Fatal(err)
		}
		return pod
	}
	check := func(got, want rules.Pod) {
		t.Helper()
		if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
	check(observe(conf), rules.Pod{Nameservers: []netip.Addr{netip.MustParseAddr("10.96.0.10")}})
	ns.Run(t, "link set lo up\naddr add ::6/128 dev lo", "ip", "-batch", "-")
	check(observe(filepath.Join(dir, "none")), rules.Pod{IPv6: true})
	if _, err := Observe(dir); err == nil {
		t.Error("resolv.conf is a directory: want an error")
	}
}

package rules

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"net/netip"
)

func TestNameservers(t *testing.T) {
	tests := map[string][]netip.Addr{
		"": nil,
		"search a.svc b\nnameserver 10.96.0.10\noptions ndots:5\n":                      addrs("10.96.0.10"),
		"nameserver\t10.96.0.10 \r\n nameserver fd00:10:96::a\nnameserver fe80::1%eth0": addrs("10.96.0.10", "fd00:10:96::a", "fe80::1"),
		"#nameserver 1.1.1.1\n; nameserver 1.1.1.1\nnameserver\nnameserver x\n":         nil,
		"nameserver ::ffff:10.96.0.10":                                                  addrs("10.96.0.10"),
		"nameserver 1.2.3.4 # comment":                                                  addrs("1.2.3.4"),
	}
	for conf, want := range tests {
		if diff := cmp.Diff(want, nameservers(conf), cmpopts.EquateComparable(netip.Addr{})); diff != "" {
			t.Errorf("%q (-want +got):\n%s", conf, diff)
		}
	}
}

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

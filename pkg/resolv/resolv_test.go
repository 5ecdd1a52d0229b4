package resolv

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func addrs(list ...string) (out []netip.Addr) {
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func TestNameservers(t *testing.T) {
	tests := map[string][]netip.Addr{
		"": nil,
		"search a.svc b\nnameserver 10.96.0.10\noptions ndots:5\n":                               addrs("10.96.0.10"),
		"nameserver\t10.96.0.10 \r\n nameserver fd00:10:96::a\nnameserver fe80::1%eth0":          addrs("10.96.0.10", "fd00:10:96::a", "fe80::1"),
		"#nameserver 1.1.1.1\n; nameserver 1.1.1.1\nnameserver\nnameserver x\n":                  nil,
		"nameserver ::ffff:10.96.0.10":                                                           addrs("10.96.0.10"),
		"nameserver 1.2.3.4 # comment":                                                           addrs("1.2.3.4"),
		"nameserver 1.1.1.1\nnameserver 1.1.1.2\nnameserver 1.1.1.3\nnameserver 1.1.1.4 ignored": addrs("1.1.1.1", "1.1.1.2", "1.1.1.3"),
	}
	file := filepath.Join(t.TempDir(), "resolv.conf")
	for conf, want := range tests {
		if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := Nameservers(file)
		if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" || err != nil {
			t.Errorf("%q: error %v (-want +got):\n%s", conf, err, diff)
		}
	}
}

func TestNameserversWithoutFile(t *testing.T) {
	dir := t.TempDir()
	if got, err := Nameservers(filepath.Join(dir, "none")); len(got) > 0 || err != nil {
		t.Errorf("no file: %v and %v, want none", got, err)
	}
	if _, err := Nameservers(dir); err == nil {
		t.Error("the file is a directory: want an error")
	}
}

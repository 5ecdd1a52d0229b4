package rules

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/google/nftables"

	"github.com/meshvirt/meshvirt/pkg/plan"
	testlab "github.com/meshvirt/meshvirt/test/lab"
)

// scattered gives n prefixes of each family that cannot be merged: 100.0.0.0/28, 100.0.32.0/28 and
// so on, fd00:0:0:1::/64, fd00:0:2000:1::/64 and so on.
func scattered(n int) (out []netip.Prefix) {
	for i := range n {
		hi, mid, lo := byte(i>>11), byte(i>>3), byte(i<<5)
		out = append(out,
			netip.PrefixFrom(netip.AddrFrom4([4]byte{100 + hi, mid, lo, 0}), 28),
			netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, hi, mid, lo, 0, 0, 0, 1}), 64))
	}
	return out
}

func BenchmarkApply(b *testing.B) {
	for _, n := range []int{10, 1_000, 20_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			p := examplePlan(plan.NATProxy)
			p.Outbound.ExcludeCIDRs = scattered(n)[:n] // half of each family
			r, err := Build(p, Pod{IPv6: true, Nameservers: exampleServers})
			if err != nil {
				b.Fatal(err)
			}
			ns := testlab.NewNetns(b)
			for b.Loop() {
				if err := r.Apply(nftables.WithNetNSFd(int(ns.Fd()))); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

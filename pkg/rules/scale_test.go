package rules

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/nftables"

	"github.com/meshvirt/meshvirt/pkg/plan"
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

// TestManyCIDRs loads more than a plan could carry, in one transaction.
func TestManyCIDRs(t *testing.T) {
	const n = 20_000
	p := examplePlan(plan.Rules)
	p.Outbound.ExcludeCIDRs = scattered(n)
	r := build(t, p, Pod{IPv6: true})
	if got := r.Elements(); got < 2*n {
		t.Fatalf("%d set members, want at least %d", got, 2*n)
	}
	a := newNetns(t)
	checkKernel(t, r, newNetns(t), a)
	for addr, in := range map[string]bool{
		"99.255.255.255": false, "100.0.0.0": true, "100.0.0.15": true, "100.0.0.16": false, "100.0.31.255": false,
		"100.0.32.0": true, "109.195.224.15": true, "109.195.224.16": false,
		"fd00:0:0:1::": true, "fd00:0:0:1:ffff:ffff:ffff:ffff": true, "fd00:0:0:2::": false, "fd00::": false,
	} {
		set := map[bool]string{true: "exclude_out6", false: "exclude_out4"}[strings.Contains(addr, ":")]
		// nft get element asks the kernel's own look-up, and fails for what is not a member.
		cmd := fmt.Sprintf("if nft get element inet %s %s '{ %s }' >/dev/null 2>&1; then echo in; fi", Table, set, addr)
		if got := a.run(t, "", "sh", "-c", cmd) != ""; got != in {
			t.Errorf("%s in set %s: %t, want %t", addr, set, got, in)
		}
	}
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
			ns := newNetns(b)
			for b.Loop() {
				if err := r.Apply(nftables.WithNetNSFd(int(ns.Fd()))); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

package rules

import (
	"strings"
	"testing"

	"github.com/meshvirt/meshvirt/pkg/nft"
	"github.com/meshvirt/meshvirt/pkg/plan"
)

// TestGuestPosingAsOthers counts, since nobody could answer such packets.
func TestGuestPosingAsOthers(t *testing.T) {
	l := newLab(t, plain)
	r := build(t, dnsPlan(plan.Rules), dualPod)
	unknown := dnsPlan(plan.Rules)
	unknown.Interfaces = append(unknown.Interfaces, "k6t-net1") // on which the guest has an address that the plan does not name
	for _, from := range []struct {
		addr      string
		neighbour bool
	}{
		{"127.0.0.9", false}, {"::6", false}, {"10.244.1.99", false}, {"fd00:10:244:1::99", false}, {"169.254.7.127", false},
		{"10.0.2.77", true}, {"fd10:0:2::77", true},
	} {
		f, to := "/32", away+":80"
		if strings.Contains(from.addr, ":") {
			f, to = "/128", "["+away6+"]:80"
		}
		l.guest.Run(t, "addr add "+from.addr+f+" dev eth0 nodad", "ip", "-batch", "-")
		for _, c := range []struct {
			name  string
			rules nft.Ruleset
			drops bool
		}{
			{"whole", r, true},
			{"without the guard", without(r, "no guest may pose"), false},
			{"an unknown address", build(t, unknown, dualPod), !from.neighbour},
			{"the known address alone", without(r, "not behind its interface"), true},
		} {
			l.apply(c.rules)
			n := 0
			for try := 0; try == 0 || c.drops && n == 0 && try < 10; try++ { // neighbours have to be found first
				l.ask(l.guest, appUID, "tcp", from.addr, to, silence)
				n = l.drops()
			}
			if n > 0 != c.drops {
				t.Errorf("%s: asked %s from %s: %d packets dropped, want some: %t", c.name, to, from.addr, n, c.drops)
			}
		}
	}
}

// Package keeper works in a running pod: it looks at what only the pod knows, writes the rules of a plan there, and keeps
// them right while interfaces come and go. Which rules those are is the matter of package rules.
package keeper

import (
	"context"
	"reflect"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/meshvirt/meshvirt/pkg/bridge"
	"github.com/meshvirt/meshvirt/pkg/nft"
	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/rules"
)

// Written says what one attempt of Keep has done.
type Written struct {
	Pod   rules.Pod
	Rules nft.Ruleset
	// Settled is the plan that the rules are of, and what in the pod contradicts it.
	bridge.Settled
	// Present says that one of the plan's interfaces exists, and so that the rules are complete.
	Present bool
	// Err is why the attempt failed. Another one follows.
	Err error
}

// Keep writes the rules of p at once and keeps them right until ctx is done. They are written again
//
//   - when a masquerade bridge is found that takes the place of what p assumes, or contradicts it;
//   - each time that a bridge or one of p.Interfaces appears: mode tproxy needs a hook that is made after
//     br_netfilter's, which comes with the first bridge. Its policy route is made as soon as one of the
//     interfaces exists, so that nothing is delivered by it before.
//
// A bridge that has gone is thought to come back: its rules stay. report is told of every attempt.
//
// It works in the network namespace of the caller's thread, and leaves everything there at its end.
func Keep(ctx context.Context, p plan.Plan, resolvConf string, report func(Written)) {
	k := upkeep{settler: bridge.NewSettler(p), resolvConf: resolvConf}
	bridge.Follow(ctx, func(e bridge.Event) bool {
		w, tried := k.look(e)
		if tried {
			report(w)
		}
		return w.Err == nil
	})
}

// An upkeep is what Keep remembers.
type upkeep struct {
	settler    *bridge.Settler
	resolvConf string
	seen       map[int32]bool // links that the rules were written for, by index
	last       bridge.Settled // what the rules were written of
	failed     bool           // the last attempt
}

// look writes the rules if e calls for it.
func (k *upkeep) look(e bridge.Event) (w Written, tried bool) {
	if e.Begin {
		k.seen, k.failed = map[int32]bool{}, true
	}
	if e.Err != nil {
		k.failed = true
		return Written{Err: e.Err}, true
	}
	settled := k.settler.Settle(e.Found)
	if appeared := k.appeared(settled.Plan, e.Link); !appeared && !k.failed && reflect.DeepEqual(settled, k.last) {
		return w, false
	}
	w = write(settled, e.Found, k.resolvConf)
	k.last, k.failed = settled, w.Err != nil
	return w, true
}

// appeared says whether a message tells of a bridge or a guest's interface for the first time. It comes after
// br_netfilter has made its hooks, so what it tells of was surely there.
func (k *upkeep) appeared(p plan.Plan, u *netlink.LinkUpdate) bool {
	if u == nil || u.Header.Type != unix.RTM_NEWLINK || k.seen[u.Index] || u.Type() != "bridge" && !slices.Contains(p.Interfaces, u.Attrs().Name) {
		return false
	}
	k.seen[u.Index] = true // the kernel uses no index twice in a pod's life
	return true
}

// write makes everything right once.
func write(s bridge.Settled, f bridge.Found, resolvConf string) (w Written) {
	w.Settled = s
	w.Present = slices.ContainsFunc(s.Plan.Interfaces, func(name string) bool { return slices.Contains(f.Links, name) })
	if w.Pod, w.Err = Observe(resolvConf); w.Err != nil {
		return w
	}
	if w.Rules, w.Err = rules.Build(s.Plan, w.Pod); w.Err != nil {
		return w
	}
	if w.Err = w.Rules.Apply(); w.Err != nil || !w.Present || s.Plan.Mode != plan.TProxy {
		return w
	}
	w.Err = routeMarked(w.Pod.ServesIPv6(s.Plan.Mesh))
	return w
}

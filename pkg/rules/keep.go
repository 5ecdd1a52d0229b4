package rules

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/meshvirt/meshvirt/pkg/plan"
)

// keepRetry is the wait after a failed attempt. Each is cheap, and traffic is blocked meanwhile.
const keepRetry = time.Second

// Written says what one attempt of Keep has done.
type Written struct {
	Pod   Pod
	Rules Ruleset
	// Present says that one of the plan's interfaces exists, and so that the rules are complete.
	Present bool
	// Err is why the attempt failed. Another one follows.
	Err error
}

// Keep writes the rules of p at once, and again each time that a bridge or one of p.Interfaces
// appears, until ctx is done: mode tproxy needs a hook that is made after br_netfilter's, which comes
// with the first bridge. Its policy route is made as soon as one of the interfaces exists, so that
// nothing is delivered by it before. report is told of every attempt.
//
// It works in the network namespace of the caller's thread, and leaves everything there at its end.
func Keep(ctx context.Context, p plan.Plan, resolvConf string, report func(Written)) {
	for ctx.Err() == nil {
		if err := keep(ctx, p, resolvConf, report); err != nil {
			report(Written{Err: err})
		}
		select {
		case <-ctx.Done():
		case <-time.After(keepRetry):
		}
	}
}

// keep is Keep until the kernel's messages about links end, which they do if too many came at once.
func keep(ctx context.Context, p plan.Plan, resolvConf string, report func(Written)) error {
	updates, done := make(chan netlink.LinkUpdate), make(chan struct{})
	defer func() {
		close(done)
		go func() { // the sender may be waiting for us
			for range updates {
			}
		}()
	}()
	lost := make(chan error, 1) // the first error
	tell := func(err error) {
		select {
		case lost <- err:
		default:
		}
	}
	if err := netlink.LinkSubscribeWithOptions(updates, done, netlink.LinkSubscribeOptions{ErrorCallback: tell}); err != nil {
		return fmt.Errorf("watch links: %w", err)
	}
	// A message comes after br_netfilter has made its hooks, so what it tells of was surely there.
	seen := map[int32]bool{}
	retry := time.NewTimer(0) // the first attempt
	defer retry.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-lost:
			return fmt.Errorf("watch links: %w", err)
		case u, ok := <-updates:
			if !ok {
				return errors.New("watch links: no more messages")
			}
			a := u.Attrs()
			if u.Header.Type != unix.RTM_NEWLINK || seen[u.Index] || u.Type() != "bridge" && !slices.Contains(p.Interfaces, a.Name) {
				continue
			}
			seen[u.Index] = true // the kernel uses no index twice in a pod's life
		case <-retry.C:
		}
		w := write(p, resolvConf)
		if report(w); w.Err != nil {
			retry.Reset(keepRetry)
		}
	}
}

// write makes everything right once.
func write(p plan.Plan, resolvConf string) (w Written) {
	w.Present = slices.ContainsFunc(p.Interfaces, func(name string) bool {
		_, err := netlink.LinkByName(name)
		return err == nil
	})
	if w.Pod, w.Err = Observe(resolvConf); w.Err != nil {
		return w
	}
	if w.Rules, w.Err = Build(p, w.Pod); w.Err != nil {
		return w
	}
	if w.Err = w.Rules.Apply(); w.Err != nil || !w.Present || p.Mode != plan.TProxy {
		return w
	}
	w.Err = routeMarked(newBuilder(p, w.Pod).served)
	return w
}

package main

import (
	"context"
	"log/slog"
	"reflect"

	"github.com/meshvirt/meshvirt/pkg/bridge"
	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/proxy"
)

// follow tells the relay, until ctx is done, what is found of the guest in the pod, and logs it. It needs no
// capability. With a watcher for the rules both settle alike; without one, nothing is adopted, and any
// difference is a contradiction. looked is called after the first look.
func follow(ctx context.Context, p plan.Plan, relay *proxy.Proxy, log *slog.Logger, looked func()) {
	settler, last := bridge.NewSettler(p), bridge.Settled{Plan: p}
	bridge.Follow(ctx, func(e bridge.Event) bool {
		defer looked()
		if e.Err != nil {
			log.Warn("cannot look at the pod's interfaces; next attempt follows", "error", e.Err)
			return false
		}
		s := settler.Settle(e.Found)
		if reflect.DeepEqual(s, last) {
			return true
		}
		last = s
		relay.Settle(s)
		log.Info("found the guest", "interfaces", s.Plan.Interfaces, "guestIPv4", s.Plan.Guest.IPv4, "guestIPv6", s.Plan.Guest.IPv6)
		if err := s.Contradicted(); err != nil {
			log.Error("not ready", "error", err)
		}
		return true
	})
}

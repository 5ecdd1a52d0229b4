package bridge

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// retry is the wait after something failed. Each attempt is cheap, and the guest's traffic waits.
const retry = time.Second

// An Event is what Follow tells.
type Event struct {
	// Begin says that messages may have been missed before: anything may have changed.
	Begin bool
	// Link is the message, if it was one about a link.
	Link *netlink.LinkUpdate
	// Found is how the pod is now; not valid with Err.
	Found Found
	Err   error
}

// Follow calls look at once, and again with every message of the kernel about links and addresses,
// until ctx is done. If look returns false, or the kernel's messages were lost, it is called again a
// second later as well.
//
// It works in the network namespace of the caller's thread, and calls look there.
func Follow(ctx context.Context, look func(Event) bool) {
	for ctx.Err() == nil {
		if err := follow(ctx, look); err != nil {
			look(Event{Err: err})
		}
		select {
		case <-ctx.Done():
		case <-time.After(retry):
		}
	}
}

// follow is Follow until the kernel's messages end, which they do if too many came at once.
func follow(ctx context.Context, look func(Event) bool) error {
	links, addrs, done := make(chan netlink.LinkUpdate), make(chan netlink.AddrUpdate), make(chan struct{})
	lost := make(chan error, 1) // the first error
	tell := func(err error) {
		select {
		case lost <- fmt.Errorf("watch links and addresses: %w", err):
		default:
		}
	}
	if err := netlink.LinkSubscribeWithOptions(links, done, netlink.LinkSubscribeOptions{ErrorCallback: tell}); err != nil {
		return fmt.Errorf("watch links: %w", err)
	}
	defer end(links, done)
	addrsDone := make(chan struct{})
	if err := netlink.AddrSubscribeWithOptions(addrs, addrsDone, netlink.AddrSubscribeOptions{ErrorCallback: tell}); err != nil {
		return fmt.Errorf("watch addresses: %w", err)
	}
	defer end(addrs, addrsDone)

	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("look at links: %w", err)
	}
	defer h.Close()
	event := func(e Event) Event {
		e.Found, e.Err = Find(h)
		return e
	}
	again := time.NewTimer(retry)
	again.Stop()
	e := event(Event{Begin: true})
	for {
		if ok := look(e); !ok || e.Err != nil {
			again.Reset(retry)
		}
		select {
		case <-ctx.Done():
			return nil
		case err := <-lost:
			return err
		case u, ok := <-links:
			if !ok {
				return errors.New("watch links: no more messages")
			}
			e = event(Event{Link: &u})
		case _, ok := <-addrs:
			if !ok {
				return errors.New("watch addresses: no more messages")
			}
			e = event(Event{})
		case <-again.C:
			e = event(Event{})
		}
	}
}

// end closes a subscription, whose sender may be waiting for us.
func end[T any](updates <-chan T, done chan struct{}) {
	close(done)
	go func() {
		for range updates {
		}
	}()
}

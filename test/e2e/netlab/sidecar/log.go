package sidecar

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/meshvirt/meshvirt/test/e2e/netlab/agent"
)

// Log collects the events of a running sidecar.
type Log struct {
	in     io.Writer
	mu     sync.Mutex
	events []Event
	synced int
	ended  error
	change chan struct{} // closed and replaced when the fields above change
}

// NewLog reads events from a sidecar's output; in is its input.
func NewLog(in io.Writer, out io.Reader) *Log {
	l := &Log{in: in, change: make(chan struct{})}
	go l.read(out)
	return l
}

func (l *Log) read(out io.Reader) {
	for d := json.NewDecoder(out); ; {
		var e Event
		err := d.Decode(&e)
		l.mu.Lock()
		switch {
		case err != nil:
			l.ended = fmt.Errorf("%w: the sidecar ended: %w", agent.ErrNoAnswer, err)
		case e.Synced != 0:
			l.synced = e.Synced
		case e.Order <= len(l.events): // more is told of a connection
			l.events[e.Order-1] = e
		default:
			l.events = append(l.events, e)
		}
		close(l.change)
		l.change = make(chan struct{})
		l.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// Events gives all events until now. The first call waits until the sidecar listens. Calls must not
// overlap.
func (l *Log) Events(ctx context.Context) ([]Event, error) {
	l.mu.Lock()
	want := l.synced + 1
	l.mu.Unlock()
	if _, err := fmt.Fprintln(l.in, want); err != nil {
		return nil, fmt.Errorf("ask the sidecar for its events: %w: %w", agent.ErrNoAnswer, err)
	}
	for {
		l.mu.Lock()
		synced, ended, change, events := l.synced, l.ended, l.change, slices.Clone(l.events)
		l.mu.Unlock()
		if ended != nil || synced == want {
			return events, ended
		}
		select {
		case <-change:
		case <-ctx.Done():
			return nil, fmt.Errorf("ask the sidecar for its events: %w: %w", agent.ErrNoAnswer, ctx.Err())
		}
	}
}

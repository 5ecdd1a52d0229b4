// Package lab is what tests share that work with namespaces, sockets and processes. Tests inside any package may use
// it: it imports none of this module.
package lab

import (
	"strconv"
	"strings"
	"testing"
	"time"
)

// Await fails the test unless cond becomes true within half a minute.
func Await(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for range 3000 {
		if cond() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("never saw %s", what)
}

// Metric reads a series, named with its labels, in a text as Prometheus asks for it.
func Metric(t testing.TB, text, series string) int {
	t.Helper()
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(line, series+" "); ok {
			n, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			if err != nil {
				t.Fatal(err)
			}
			return int(n)
		}
	}
	t.Fatalf("no series %s in\n%s", series, text)
	return 0
}

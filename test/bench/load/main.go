// Load makes the traffic of the data-path benchmark, serves it, and is the plainest relay to compare
// with. Both sides of every comparison use it alike. Commands that measure print one line of JSON; the
// others print "ready" and go on until their standard input ends.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"time"
)

// patience bounds one connection's conversation, and a client's wait for its end.
const patience = 20 * time.Second

func main() {
	if err := run(os.Args[1:], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(1)
	}
}

func run(args []string, in io.Reader, out io.Writer) error {
	if len(args) == 0 {
		return errors.New("want serve, relay, connect, bulk or hold")
	}
	flags := flag.NewFlagSet(args[0], flag.ContinueOnError)
	var to netip.AddrPort
	flags.TextVar(&to, "to", netip.AddrPort{}, "`address` to connect to")
	port := flags.Uint("port", 0, "`port` to serve on; serve takes it and the next three")
	n := flags.Int("n", 1, "connections at a time")
	slice := flags.Duration("for", time.Second, "how long to measure")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	var (
		result any
		err    error
	)
	switch args[0] {
	case "serve":
		err = serve(uint16(*port))
	case "relay":
		err = relay(uint16(*port))
	case "hold":
		err = hold(to, *n)
	case "connect":
		result, err = connect(to, *slice)
	case "bulk":
		result, err = bulk(to, *n, *slice)
	default:
		err = fmt.Errorf("no command %q", args[0])
	}
	if err != nil {
		return err
	}
	if result != nil {
		return json.NewEncoder(out).Encode(result)
	}
	fmt.Fprintln(out, "ready")
	_, err = io.Copy(io.Discard, in)
	return err
}

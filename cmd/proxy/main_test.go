package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/test/lab"
)

// Whatever keeps the relay from running, the error says what to do.
func TestRunErrors(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	port := uint16(taken.Addr().(*net.TCPAddr).Port)
	for _, c := range []struct {
		name string
		args []string
		plan string
		want []string
	}{
		{"no plan", nil, "", []string{plan.Env, "recreate the pod"}},
		{"argument", []string{"-x"}, encode(t, nil), []string{`"-x"`, "want none"}},
		{"other release", nil, strings.Replace(encode(t, nil), plan.Release, "9.9.9", 1), []string{"9.9.9", plan.Release, "same release"}},
		{"other mode", nil, encode(t, func(p *plan.Plan) { p.Mode, p.Proxy = plan.Rules, nil }), []string{`"rules"`, `"nat-proxy"`}},
		{"outbound port taken", nil, encode(t, func(p *plan.Plan) { p.Proxy.OutboundPort = port }), []string{"outbound", strconv.Itoa(int(port)), "in use"}},
		{"inbound port taken", nil, encode(t, func(p *plan.Plan) { p.Proxy.InboundPort = port }), []string{"inbound", strconv.Itoa(int(port)), "in use"}},
		{"status port taken", nil, encode(t, func(p *plan.Plan) { p.Proxy.StatusPort = port }), []string{"status", strconv.Itoa(int(port)), "in use"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Setenv(plan.Env, c.plan)
			var out bytes.Buffer
			err := run(t.Context(), c.args, &out)
			if err == nil {
				t.Fatal("no error")
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error is %q, want %s in it", err, want)
				}
			}
		})
	}
}

// The binary needs no capability and, without nameservers, no file, and relays; SIGTERM ends it with 0 once it is drained.
func TestBinary(t *testing.T) {
	p := start(t, "", encode(t, nil))
	for key, want := range map[string]string{
		"Uid": "1500 1500 1500 1500", "Gid": "1500 1500 1500 1500", "Groups": "", "NoNewPrivs": "1",
		"CapInh": "0000000000000000", "CapPrm": "0000000000000000", "CapEff": "0000000000000000", "CapAmb": "0000000000000000",
	} {
		if got := p.status(key); got != want {
			t.Errorf("%s is %q, want %q", key, got, want)
		}
	}
	c := dial(t, serve(t))
	if err := lab.Ping(c); err != nil {
		t.Fatal(err)
	}
	if n := p.metric(http.DefaultClient, `bytes_total{direction="outbound",from="client"}`); n != 4 {
		t.Errorf("%d bytes relayed, want 4", n)
	}
	if code, body, err := p.get(http.DefaultClient, "/livez"); code != http.StatusOK {
		t.Errorf("/livez: %d %q %v", code, body, err)
	}

	p.cmd.Process.Signal(syscall.SIGTERM)
	p.await("the drain", func() bool {
		code, body, err := p.get(http.DefaultClient, "/readyz")
		return err == nil && code == http.StatusServiceUnavailable && strings.Contains(body, "draining")
	})
	if err := lab.Ping(c); err != nil {
		t.Errorf("while draining: %v", err)
	}
	c.Close()
	if err := p.wait(); err != nil {
		t.Errorf("the relay ended with %v, want status 0", err)
	}
	for _, want := range []string{`"msg":"relaying"`, `"release":"` + plan.Release + `"`, `"msg":"drained"`} {
		if !strings.Contains(p.log.String(), want) {
			t.Errorf("the log lacks %s:\n%s", want, p.log)
		}
	}
}

// Without the relay nobody answers at far: what TestBinary sees is its work.
func TestWithoutBinary(t *testing.T) {
	if _, err := tryDial(t, serve(t)); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("dial gave %v, want %v", err, unix.ECONNREFUSED)
	}
}

// A connection that outlasts the drain is cut, and the exit is clean all the same.
func TestBinaryCuts(t *testing.T) {
	p := start(t, "", encode(t, func(p *plan.Plan) { p.Proxy.DrainSeconds = 1 }))
	c := dial(t, serve(t))
	if err := lab.Ping(c); err != nil {
		t.Fatal(err)
	}
	p.cmd.Process.Signal(syscall.SIGTERM)
	if _, err := c.Read(make([]byte, 1)); !lab.IsReset(err) {
		t.Errorf("the open connection ended with %v, want a reset", err)
	}
	if err := p.wait(); err != nil {
		t.Errorf("the relay ended with %v, want status 0", err)
	}
}

// The soft limit of descriptors does not matter, the hard one is what there is.
func TestBinaryRaisesSoftLimit(t *testing.T) {
	start(t, "ulimit -Sn 150; ulimit -Hn 1000", encode(t, nil))
	port := serve(t)
	for i := range 300 {
		if err := lab.Ping(dial(t, port)); err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
	}
}

// More clients than descriptors: the rest are refused, those open go on, and so do the probes.
func TestBinaryFull(t *testing.T) {
	p := start(t, "ulimit -n 200", encode(t, nil))
	port := serve(t)
	var open []*net.TCPConn
	refused := 0
	for range 100 {
		c, err := tryDial(t, port)
		if err == nil {
			err = lab.Ping(c)
		}
		if err == nil {
			open = append(open, c)
		} else if lab.IsReset(err) {
			refused++
		} else {
			t.Fatal(err)
		}
	}
	if len(open) == 0 || refused == 0 {
		t.Errorf("%d connections relayed and %d refused, want some of both", len(open), refused)
	}
	http.DefaultClient.CloseIdleConnections()
	for _, path := range []string{"/readyz", "/livez"} {
		if code, body, err := p.get(http.DefaultClient, path); code != http.StatusOK {
			t.Errorf("%s: %d %q %v, want 200", path, code, body, err)
		}
	}
	if n := p.metric(http.DefaultClient, `refused_total{direction="outbound",reason="full"}`); n != refused {
		t.Errorf("%d refusals counted, want %d", n, refused)
	}
	for _, c := range open {
		if err := lab.Ping(c); err != nil {
			t.Errorf("an open connection: %v", err)
		}
		c.Close()
	}
	p.await("the descriptors back", func() bool {
		return p.metric(http.DefaultClient, `connections_open{direction="outbound"}`) == 0
	})
	if err := lab.Ping(dial(t, port)); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// accept fails for want of descriptors: clients wait, the loop does not spin, nobody is lost.
func TestBinaryAcceptFails(t *testing.T) {
	p := start(t, "", encode(t, nil))
	port := serve(t)
	first := dial(t, port)
	if err := lab.Ping(first); err != nil {
		t.Fatal(err)
	}
	// One connection for all questions below: there will be no descriptor for another.
	client := &http.Client{Transport: &http.Transport{MaxConnsPerHost: 1}}
	if n := p.metric(client, "accept_errors_total"); n != 0 {
		t.Fatalf("%d errors before the test", n)
	}
	p.limitFiles("1:")
	var waiting []*net.TCPConn
	for range 50 {
		waiting = append(waiting, dial(t, port))
	}
	p.await("accept fail", func() bool { return p.metric(client, "accept_errors_total") > 0 })
	// In this second the loop has nothing to do but to try again now and then.
	errorsBefore, wakeups := p.metric(client, "accept_errors_total"), p.metric(client, "loop_wakeups_total")
	time.Sleep(time.Second)
	if n := p.metric(client, "loop_wakeups_total") - wakeups; n > 40 {
		t.Errorf("%d rounds of the loop in a second, want some 12", n)
	}
	if n := p.metric(client, "accept_errors_total") - errorsBefore; n < 1 || n > 40 {
		t.Errorf("%d more errors in a second, want some 12", n)
	}
	if err := lab.Ping(first); err != nil {
		t.Errorf("the open connection meanwhile: %v", err)
	}
	p.limitFiles("1000:")
	for i, c := range waiting {
		if err := lab.Ping(c); err != nil {
			t.Errorf("client %d that had to wait: %v", i, err)
		}
	}
}

// The kernel lets a user have 64 pipes of 1 MB on a node. When other relays have them all, bulk data
// is copied instead.
func TestBinaryWithoutPipes(t *testing.T) {
	for _, taken := range []bool{false, true} {
		t.Run(fmt.Sprintf("taken %t", taken), func(t *testing.T) {
			if taken {
				takePipes(t)
			}
			p := start(t, "", encode(t, nil))
			before := p.files("pipe")
			c := dial(t, serve(t))
			go func() {
				io.Copy(c, io.LimitReader(rand.NewChaCha8([32]byte{1}), 64<<20))
				c.CloseWrite()
			}()
			got, want := sha256.New(), sha256.New()
			n, err := io.Copy(got, c)
			io.Copy(want, io.LimitReader(rand.NewChaCha8([32]byte{1}), 64<<20))
			if !bytes.Equal(got.Sum(nil), want.Sum(nil)) {
				t.Errorf("%d bytes came back (%v), not those that were sent", n, err)
			}
			if n := p.files("pipe") - before; (n == 0) != taken {
				t.Errorf("the relay keeps %d ends of pipes", n)
			}
		})
	}
}

// run ends when its context does, also in process.
func TestRunEndsWithContext(t *testing.T) {
	t.Setenv(plan.Env, encode(t, nil))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := run(ctx, nil, io.Discard); err != nil {
		t.Errorf("run: %v", err)
	}
}

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
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meshvirt/meshvirt/pkg/plan"
)

// The tests run in a network namespace of their own with one host: this process, as root, is the
// guest, whose connections to far are redirected; the relay, as uid, dials far, which is this
// process again.
const (
	uid                       = 1500
	outPort, inPort, statPort = 15201, 15202, 15203

	network = `
		ip link set lo up
		ip addr add 10.244.1.10/32 dev lo
		ip route add default dev lo src 10.244.1.10
		echo 1 > /proc/sys/net/ipv4/tcp_tw_reuse
		nft -f - <<-EOF
			table ip meshvirt {
				chain out {
					type nat hook output priority -101
					ip daddr 192.0.2.10 meta skuid 0 meta l4proto tcp redirect to :15201
					ip daddr 192.0.2.10 meta skuid 1500 meta l4proto tcp dnat to 127.0.0.1
				}
			}
		EOF`
)

var far = netip.MustParseAddr("192.0.2.10")

func TestMain(m *testing.M) {
	if os.Getenv(pipeHolder) != "" {
		holdPipes()
	}
	const marker = "MESHVIRT_PROXY_LAB"
	if os.Getenv(marker) == "" {
		runtime.LockOSThread() // Pdeathsig is about the thread
		cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
		cmd.Env = append(os.Environ(), marker+"=1")
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
		if err := cmd.Run(); err != nil {
			fmt.Fprintln(os.Stderr, "run the tests in a network namespace (want root):", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if out, err := exec.Command("sh", "-ec", network).CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build the network (want root, ip and nft): %v\n%s", err, out)
		os.Exit(1)
	}
	code := m.Run()
	if dir, err := root(); err == nil {
		os.RemoveAll(dir)
	}
	os.Exit(code)
}

func testPlan() plan.Plan {
	return plan.Plan{
		Mode:         plan.NATProxy,
		Interfaces:   []string{"k6t-eth0"},
		PodInterface: "eth0",
		Guest:        plan.Guest{IPv4: netip.MustParseAddr("10.0.2.2")},
		Mesh:         plan.Mesh{OutboundPort: 15001, InboundPort: 15006, UID: 1337, GID: 1337},
		Proxy:        &plan.Proxy{UID: uid, OutboundPort: outPort, InboundPort: inPort, StatusPort: statPort, DrainSeconds: 60},
	}
}

func encode(t *testing.T, change func(*plan.Plan)) string {
	t.Helper()
	p := testPlan()
	if change != nil {
		change(&p)
	}
	s, err := p.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

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

// process is the real binary as it runs in a pod: alone in its root directory, as a user without any
// capability, and never to get one.
type process struct {
	t     *testing.T
	cmd   *exec.Cmd
	log   *bytes.Buffer // to be read once it has ended
	ended chan struct{}
	err   error // then
}

// root is the directory with the binary, made once.
var root = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "meshvirt-proxy")
	if err != nil {
		return "", err
	}
	cmd := exec.Command("go", "build", "-trimpath", "-o", filepath.Join(dir, "proxy"), ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w\n%s", err, out)
	}
	return dir, os.Chmod(dir, 0o755)
})

// start runs the binary with limits as to ulimit, and waits until it is ready.
func start(t *testing.T, limits, env string) *process {
	t.Helper()
	dir, err := root()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{t: t, log: new(bytes.Buffer), ended: make(chan struct{})}
	p.cmd = exec.Command("sh", "-ec", limits+`
		exec setpriv --no-new-privs chroot --userspec=1500:1500 --groups= "$0" /proxy`, dir)
	p.cmd.Env = []string{"PATH=" + os.Getenv("PATH"), plan.Env + "=" + env}
	p.cmd.Stderr = p.log
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.ended)
	}()
	t.Cleanup(func() {
		p.cmd.Process.Kill()
		p.wait()
		if t.Failed() {
			t.Logf("log of the relay:\n%s", p.log)
		}
	})
	p.await("readiness", func() bool {
		code, _, err := p.get(http.DefaultClient, "/readyz")
		return err == nil && code == http.StatusOK
	})
	return p
}

// wait returns how the process ended.
func (p *process) wait() error {
	<-p.ended
	return p.err
}

func (p *process) get(client *http.Client, path string) (int, string, error) {
	resp, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d%s", statPort, path))
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body), err
}

// metric reads one series, named without its prefix.
func (p *process) metric(client *http.Client, series string) int {
	p.t.Helper()
	_, body, err := p.get(client, "/metrics")
	if err != nil {
		p.t.Fatal(err)
	}
	_, rest, _ := strings.Cut(body, "\nmeshvirt_proxy_"+series+" ")
	value, _, found := strings.Cut(rest, "\n")
	n, err := strconv.ParseFloat(value, 64)
	if !found || err != nil {
		p.t.Fatalf("no series %s in\n%s", series, body)
	}
	return int(n)
}

// status reads a line of /proc/<pid>/status.
func (p *process) status(key string) string {
	p.t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		p.t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "\n"+key+":")
	value, _, _ := strings.Cut(rest, "\n")
	return strings.Join(strings.Fields(value), " ")
}

// files counts the descriptors of the process.
func (p *process) files() int {
	p.t.Helper()
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.cmd.Process.Pid))
	if err != nil {
		p.t.Fatal(err)
	}
	return len(list)
}

// limitFiles changes RLIMIT_NOFILE of the running process, as its own user.
func (p *process) limitFiles(limit string) {
	p.t.Helper()
	cmd := exec.Command("prlimit", "--pid", strconv.Itoa(p.cmd.Process.Pid), "--nofile="+limit)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	if out, err := cmd.CombinedOutput(); err != nil {
		p.t.Fatalf("prlimit: %v\n%s", err, out)
	}
}

func (p *process) await(what string, cond func() bool) {
	p.t.Helper()
	for range 3000 {
		if cond() {
			return
		}
		select {
		case <-p.ended:
			p.t.Fatalf("the relay ended before %s: %v", what, p.err)
		case <-time.After(10 * time.Millisecond):
		}
	}
	p.t.Fatalf("never saw %s", what)
}

// serve is far: an echo server. It gives its port.
func serve(t *testing.T) uint16 {
	t.Helper()
	ln, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	var open sync.WaitGroup
	open.Go(func() {
		for {
			c, err := ln.AcceptTCP()
			if err != nil {
				return
			}
			open.Go(func() {
				defer c.Close()
				c.SetDeadline(time.Now().Add(time.Minute))
				io.CopyBuffer(struct{ io.Writer }{c}, struct{ io.Reader }{c}, make([]byte, 4<<10))
				c.CloseWrite()
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		open.Wait()
	})
	return uint16(ln.Addr().(*net.TCPAddr).Port)
}

// dial connects to a port of far, through the relay.
func dial(t *testing.T, port uint16) *net.TCPConn {
	t.Helper()
	c, err := tryDial(t, port)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func tryDial(t *testing.T, port uint16) (*net.TCPConn, error) {
	c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(netip.AddrPortFrom(far, port)))
	if err == nil {
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(time.Minute))
	}
	return c, err
}

// ping sees whether a connection is relayed.
func ping(c net.Conn) error {
	got := make([]byte, 4)
	if _, err := io.WriteString(c, "ping"); err != nil {
		return err
	}
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if string(got) != "ping" {
		return fmt.Errorf("echo gave %q", got)
	}
	return nil
}

func isReset(err error) bool { return errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE) }

// The binary needs no capability and no file, and relays; SIGTERM ends it with 0 once it is drained.
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
	if err := ping(c); err != nil {
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
	if err := ping(c); err != nil {
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
	if err := ping(c); err != nil {
		t.Fatal(err)
	}
	p.cmd.Process.Signal(syscall.SIGTERM)
	if _, err := c.Read(make([]byte, 1)); !isReset(err) {
		t.Errorf("the open connection ended with %v, want a reset", err)
	}
	if err := p.wait(); err != nil {
		t.Errorf("the relay ended with %v, want status 0", err)
	}
}

// An idle connection costs two descriptors and less than a kilobyte.
func TestBinaryIdleCost(t *testing.T) {
	p := start(t, "", encode(t, nil))
	port := serve(t)
	open := func(n int) {
		for range n {
			if err := ping(dial(t, port)); err != nil {
				t.Fatal(err)
			}
		}
	}
	rss := func() int {
		kb, err := strconv.Atoi(strings.TrimSuffix(p.status("VmRSS"), " kB"))
		if err != nil {
			t.Fatal(err)
		}
		return kb << 10
	}
	open(200) // the heap's first growth
	const flows = 3000
	memory, files := rss(), p.files()
	open(flows)
	if n := p.files() - files; n > 2*flows+8 {
		t.Errorf("%d descriptors for %d connections, want 2 each", n, flows)
	}
	each := (rss() - memory) / flows
	t.Logf("RSS %d kB, then %d bytes per connection", memory>>10, each)
	if each > 1024 {
		t.Errorf("%d bytes per idle connection, want at most 1024", each)
	}
}

// The soft limit of descriptors does not matter, the hard one is what there is.
func TestBinaryRaisesSoftLimit(t *testing.T) {
	start(t, "ulimit -Sn 150; ulimit -Hn 1000", encode(t, nil))
	port := serve(t)
	for i := range 300 {
		if err := ping(dial(t, port)); err != nil {
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
			err = ping(c)
		}
		if err == nil {
			open = append(open, c)
		} else if isReset(err) {
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
		if err := ping(c); err != nil {
			t.Errorf("an open connection: %v", err)
		}
		c.Close()
	}
	p.await("the descriptors back", func() bool {
		return p.metric(http.DefaultClient, `connections_open{direction="outbound"}`) == 0
	})
	if err := ping(dial(t, port)); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// accept fails for want of descriptors: clients wait, the loop does not spin, nobody is lost.
func TestBinaryAcceptFails(t *testing.T) {
	p := start(t, "", encode(t, nil))
	port := serve(t)
	first := dial(t, port)
	if err := ping(first); err != nil {
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
	if err := ping(first); err != nil {
		t.Errorf("the open connection meanwhile: %v", err)
	}
	p.limitFiles("1000:")
	for i, c := range waiting {
		if err := ping(c); err != nil {
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
			before := p.pipes()
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
			if n := p.pipes() - before; (n == 0) != taken {
				t.Errorf("the relay keeps %d ends of pipes", n)
			}
		})
	}
}

// pipes counts the ends of pipes that the process has.
func (p *process) pipes() (n int) {
	p.t.Helper()
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", p.cmd.Process.Pid))
	if err != nil {
		p.t.Fatal(err)
	}
	for _, l := range links {
		if to, _ := os.Readlink(l); strings.HasPrefix(to, "pipe:") {
			n++
		}
	}
	return n
}

// takePipes lets another process of the relay's user hold every pipe that it may have.
func takePipes(t *testing.T) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{pipeHolder + "=1"}
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close() // which it waits for
		cmd.Wait()
	})
	if _, err := io.ReadFull(out, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
}

// pipeHolder marks that process.
const pipeHolder = "MESHVIRT_PROXY_HOLD_PIPES"

func holdPipes() {
	for range 10000 {
		var fds [2]int
		if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
			fmt.Fprintln(os.Stderr, "pipe2:", err)
			os.Exit(1)
		}
		if _, err := unix.FcntlInt(uintptr(fds[0]), unix.F_SETPIPE_SZ, 1<<20); err == unix.EPERM {
			os.Stdout.Write([]byte{1})
			io.Copy(io.Discard, os.Stdin)
			os.Exit(0)
		}
	}
	fmt.Fprintln(os.Stderr, "the kernel does not limit pipes (fs.pipe-user-pages-soft)")
	os.Exit(1)
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

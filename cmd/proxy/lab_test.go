package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/test/lab"
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
	if os.Getenv(serverMarker) != "" {
		loadServer()
	}
	lab.Enter(network)
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

func encode(t testing.TB, change func(*plan.Plan)) string {
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

// process is the real binary as it runs in a pod: alone in its root directory, as a user without any
// capability, and never to get one.
type process struct {
	t     testing.TB
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
func start(t testing.TB, limits, env string) *process {
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
	return lab.Metric(p.t, body, "meshvirt_proxy_"+series)
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

// files counts the descriptors of the process, or those of some kinds.
func (p *process) files(kinds ...string) int {
	p.t.Helper()
	return lab.Descriptors(p.t, p.cmd.Process.Pid, kinds...)
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
	lab.Await(p.t, what, func() bool {
		if cond() {
			return true
		}
		select {
		case <-p.ended:
			p.t.Fatalf("the relay ended before %s: %v", what, p.err)
		default:
		}
		return false
	})
}

// serve is far: an echo server. It gives its port.
func serve(t testing.TB) uint16 { return serveBy(t, lab.Echo) }

// serveBy is far, where each connection is served so.
func serveBy(t testing.TB, handle func(*net.TCPConn)) uint16 {
	t.Helper()
	ln, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	return lab.Serve(t, ln, handle)
}

// dial connects to a port of far, through the relay.
func dial(t testing.TB, port uint16) *net.TCPConn {
	t.Helper()
	c, err := tryDial(t, port)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func tryDial(t testing.TB, port uint16) (*net.TCPConn, error) {
	c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(netip.AddrPortFrom(far, port)))
	if err == nil {
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(time.Minute))
	}
	return c, err
}

// helper starts another process of this program, of the user if there is one, and gives its output. It does what the
// marker says until its input ends, with the test.
func helper(t testing.TB, marker string, user *syscall.Credential) (out io.Reader) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{marker + "=1"}
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: user}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if out, err = cmd.StdoutPipe(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		cmd.Wait()
	})
	return out
}

// takePipes lets another process of the relay's user hold every pipe that it may have.
func takePipes(t *testing.T) {
	t.Helper()
	out := helper(t, pipeHolder, &syscall.Credential{Uid: uid, Gid: uid})
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

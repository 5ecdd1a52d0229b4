package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"k8s.io/client-go/util/cert"

	"github.com/meshvirt/meshvirt/pkg/admit"
	"github.com/meshvirt/meshvirt/tools"
)

const (
	// loadReviews are sent to each side at loadRate a second before its memory is read.
	loadReviews = 10_000
	loadRate    = 200
	// starts are the starts of each side whose first answer is waited for.
	starts = 15
	// answerWithin bounds the wait for a first answer.
	answerWithin = time.Minute
)

// limits are those of the programs' files, in MB (1,000,000 bytes).
var limits = []struct {
	program string
	limit   float64
}{{"webhook", 45}, {"rules", 12}, {"proxy", 12}}

// process compares programs, not handlers: size, time to the first answer, memory under load. The peer
// is test/bench/noop.
func process() ([]Result, error) {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "meshvirt-bench-")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	var results []Result
	size := map[string]float64{}
	for _, l := range limits {
		if size[l.program], err = compile(dir, l.program, "./cmd/"+l.program); err != nil {
			return nil, err
		}
		r := compare("size of meshvirt-"+l.program, "MB", "the limit", []float64{size[l.program]}, []float64{l.limit})
		r.Goal = "<= 1.00"
		results = append(results, r)
	}
	noop, err := compile(dir, "noop", "./test/bench/noop")
	if err != nil {
		return nil, err
	}
	results = append(results, compare("size of meshvirt-webhook to the peer's", "MB", noopName, []float64{size["webhook"]}, []float64{noop}))

	pod, err := recorded()
	if err != nil {
		return nil, err
	}
	body := reviewOf(pod)
	var start [2][]float64
	for range starts {
		for side, program := range sides {
			s, err := program.start(ctx, dir)
			if err != nil {
				return nil, err
			}
			took, err := s.firstAnswer(body)
			if err = errors.Join(err, s.stop()); err != nil {
				return nil, err
			}
			start[side] = append(start[side], took.Seconds())
		}
	}
	r := compare("first answer after exec", "s", noopName, start[0], start[1])
	r.Goal = "ours <= 0.30"
	results = append(results, r)

	memory, err := memoryAfterLoad(ctx, dir, body)
	if err != nil {
		return nil, err
	}
	r = compare(fmt.Sprintf("resident memory after %d reviews", loadReviews), "MiB", noopName, memory[0], memory[1])
	r.Goal = "ours <= 40.00"
	return append(results, r), nil
}

// memoryAfterLoad sends reviews to both sides at once, and gives the MiB that each has then.
func memoryAfterLoad(ctx context.Context, dir string, body []byte) (memory [2][]float64, err error) {
	var servers []*server
	defer func() {
		for _, s := range servers {
			err = errors.Join(err, s.stop())
		}
	}()
	for _, program := range sides {
		s, err := program.start(ctx, dir)
		if err != nil {
			return memory, err
		}
		servers = append(servers, s)
		if _, err := s.firstAnswer(body); err != nil {
			return memory, err
		}
	}
	failed := make(chan error, len(servers))
	for _, s := range servers {
		go func() {
			tick := time.NewTicker(time.Second / loadRate)
			defer tick.Stop()
			for range loadReviews {
				<-tick.C
				if err := s.ask(body); err != nil {
					failed <- err
					return
				}
			}
			failed <- nil
		}()
	}
	for range servers {
		err = errors.Join(err, <-failed)
	}
	for side, s := range servers {
		m, e := s.resident()
		err = errors.Join(err, e)
		memory[side] = append(memory[side], m)
	}
	return memory, err
}

// A side is a program that serves reviews at a port of 127.0.0.1.
type side struct {
	program string
	args    func(port int, certificates string) []string
	answer  string // is part of what it says to the recorded pod
}

// sides are ours and the peer's. Without a cluster to watch the webhook decides by the pod alone.
var sides = [2]side{
	{"webhook", func(port int, dir string) []string {
		return []string{fmt.Sprintf("-listen=127.0.0.1:%d", port), "-health-listen=127.0.0.1:0", "-metrics-listen=127.0.0.1:0", "-cert-dir=" + dir, "-cluster=false"}
	}, `"patch":`},
	{"noop", func(port int, dir string) []string {
		return []string{fmt.Sprintf("-port=%d", port), "-cert-dir=" + dir}
	}, `"allowed":true`},
}

// A server is a running side.
type server struct {
	side    side
	cmd     *exec.Cmd
	log     bytes.Buffer // what it said; to be read once it ended
	started time.Time
	client  *http.Client
	url     string
	ca      []byte
}

// start runs the program from dir, where compile put it, with more arguments than its own if need be.
func (s side) start(ctx context.Context, dir string, more ...string) (*server, error) {
	crt, key, err := cert.GenerateSelfSignedCertKey("localhost", []net.IP{net.IPv4(127, 0, 0, 1)}, nil)
	if err != nil {
		return nil, err
	}
	certificates, err := os.MkdirTemp(dir, "certificates-")
	if err != nil {
		return nil, err
	}
	if err := errors.Join(os.WriteFile(filepath.Join(certificates, "tls.crt"), crt, 0o600), os.WriteFile(filepath.Join(certificates, "tls.key"), key, 0o600)); err != nil {
		return nil, err
	}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(crt)
	r := &server{
		side: s, ca: crt, url: fmt.Sprintf("https://127.0.0.1:%d%s", port, admit.Path),
		client: &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, ForceAttemptHTTP2: true}},
	}
	r.cmd = exec.CommandContext(ctx, filepath.Join(dir, s.program), append(s.args(port, certificates), more...)...)
	if s.program == "noop" {
		r.cmd.Stderr = &r.log
	} // the webhook logs a line a review, which nobody is to keep
	r.started = time.Now()
	return r, r.cmd.Start()
}

// firstAnswer waits for one, and gives the time since the start.
func (s *server) firstAnswer(body []byte) (time.Duration, error) {
	for {
		err := s.ask(body)
		took := time.Since(s.started)
		if err == nil {
			return took, nil
		}
		if took > answerWithin {
			return 0, fmt.Errorf("%s does not answer within %s: %w", s.side.program, answerWithin, err)
		}
		time.Sleep(time.Millisecond)
	}
}

func (s *server) ask(body []byte) error {
	resp, err := s.client.Post(s.url, "application/json", bytes.NewReader(body))
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if !bytes.Contains(b, []byte(s.side.answer)) {
		return fmt.Errorf("%s answers %s, want %s in it", s.side.program, b, s.side.answer)
	}
	return nil
}

// resident gives the MiB of memory that the process has.
func (s *server) resident() (float64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if v, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.ParseFloat(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(v), "kB")), 64)
			return kib / 1024, err
		}
	}
	return 0, fmt.Errorf("%s has no VmRSS", s.side.program)
}

func (s *server) stop() error {
	s.client.CloseIdleConnections()
	if err := s.cmd.Process.Kill(); err != nil {
		return fmt.Errorf("end %s: %w", s.side.program, err)
	}
	_ = s.cmd.Wait() // it was killed
	return nil
}

// compile builds a package as a release is, and gives the program's size in MB.
func compile(dir, name, pkg string) (float64, error) {
	root, err := tools.Root()
	if err != nil {
		return 0, err
	}
	file := filepath.Join(dir, name)
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", file, pkg)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("build %s: %w\n%s", pkg, err, out)
	}
	info, err := os.Stat(file)
	if err != nil {
		return 0, err
	}
	return float64(info.Size()) / 1e6, nil
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer func() { _ = l.Close() }()
	return l.Addr().(*net.TCPAddr).Port, nil
}

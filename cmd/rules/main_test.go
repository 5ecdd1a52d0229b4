package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/rules"
	"github.com/meshvirt/meshvirt/test/lab"
)

// maxSize of the stripped program, in bytes: every VM's pod pulls it.
const maxSize = 12 << 20

func examplePlan(t *testing.T) string {
	t.Helper()
	p := plan.Plan{
		Mode: plan.Rules, Interfaces: []string{"k6t-eth0"}, PodInterface: "eth0",
		Guest:    plan.Guest{IPv4: netip.MustParseAddr("10.0.2.2")},
		Mesh:     plan.Mesh{OutboundPort: 15001, InboundPort: 15006, UID: 1337, GID: 1337, OwnPorts: []uint16{15021}, DNS: &plan.DNS{Port: 15053}},
		Outbound: plan.Outbound{All: true},
		Inbound:  plan.Inbound{All: true},
	}
	s, err := p.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// image is a directory that holds what the container's image and kubelet give the program.
func image(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(dir, name), ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if b, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, b)
	}
	if err := os.Mkdir(filepath.Join(dir, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "etc", "resolv.conf"), []byte("nameserver 10.96.0.10\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

// A container is what a run of the program left behind.
type container struct {
	out    string // what the program printed
	err    error  // how it ended
	listed string // the table afterwards, as nft lists it
}

// inContainer runs the program in a network namespace of its own as a container runtime does: as
// root with these capabilities only, without new privileges, in a root directory that has no /proc.
func inContainer(t *testing.T, dir, env string, caps ...uintptr) container {
	t.Helper()
	lab.NeedRoot(t)
	var c container
	if err := lab.InNamespace(func() error { return c.run(dir, env, caps) }); err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *container) run(dir, env string, caps []uintptr) error {
	for x := uintptr(0); x <= unix.CAP_LAST_CAP; x++ {
		if !slices.Contains(caps, x) {
			unix.Prctl(unix.PR_CAPBSET_DROP, x, 0, 0, 0) // fails for what this kernel does not know
		}
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	var out bytes.Buffer
	cmd := &exec.Cmd{
		Path: "/" + name, Args: []string{name}, Env: []string{plan.Env + "=" + env}, Dir: "/", Stdout: &out, Stderr: &out,
		SysProcAttr: &syscall.SysProcAttr{Chroot: dir},
	}
	c.err, c.out = cmd.Run(), out.String()
	if c.err != nil {
		return nil
	}
	listed, err := exec.Command("nft", "list", "table", "inet", rules.Table).Output()
	c.listed = string(listed)
	return err
}

func TestInContainer(t *testing.T) {
	dir := image(t)
	info, err := os.Stat(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() > maxSize {
		t.Errorf("the program has %d bytes, want at most %d", info.Size(), maxSize)
	}

	c := inContainer(t, dir, examplePlan(t), unix.CAP_NET_ADMIN)
	p, err := plan.Decode(examplePlan(t))
	if err != nil {
		t.Fatal(err)
	}
	r, err := rules.Build(p, rules.Pod{Nameservers: []netip.Addr{netip.MustParseAddr("10.96.0.10")}})
	if err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("%s: table inet meshvirt: %d rules, %d set elements, mode rules, ipv6 false\n", name, r.Rules(), r.Elements())
	if c.err != nil || c.out != want {
		t.Errorf("got %q (%v), want %q", c.out, c.err, want)
	}
	for _, want := range []string{`iifname "k6t-eth0" jump from_guest`, "redirect to :15006", "10.96.0.10"} {
		if !strings.Contains(c.listed, want) {
			t.Errorf("the kernel has no %q:\n%s", want, c.listed)
		}
	}

	c = inContainer(t, dir, examplePlan(t))
	if last := lastLine(c.out); c.err == nil || !strings.HasPrefix(last, name+": ") || !strings.Contains(last, "needs the capability NET_ADMIN") {
		t.Errorf("without capability: got %q (%v), want an error whose last line names the program and NET_ADMIN", c.out, c.err)
	}
	c = inContainer(t, dir, `{"release":"0.0.0"}`, unix.CAP_NET_ADMIN)
	if last := lastLine(c.out); c.err == nil || !strings.HasPrefix(last, name+": ") || !strings.Contains(last, "want the same release") {
		t.Errorf("plan of another release: got %q (%v), want an error that says so", c.out, c.err)
	}
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return lines[len(lines)-1]
}

func TestPrint(t *testing.T) {
	t.Setenv(plan.Env, examplePlan(t))
	var out bytes.Buffer
	if err := run(context.Background(), []string{"-print"}, &out); err != nil {
		t.Fatal(err)
	}
	if got := out.String(); !strings.HasPrefix(got, "table inet meshvirt {\n") || !strings.Contains(got, "redirect to :15001") {
		t.Errorf("got %q, want the table", got)
	}
}

func TestRunRefuses(t *testing.T) {
	canceled, cancel := context.WithCancel(context.Background())
	cancel()
	for name, test := range map[string]struct {
		ctx  context.Context
		env  string
		args []string
		want string
	}{
		"no plan":  {context.Background(), "", nil, plan.Env},
		"argument": {context.Background(), examplePlan(t), []string{"x"}, "want none"},
		"flag":     {context.Background(), examplePlan(t), []string{"-x"}, "-x"},
		"canceled": {canceled, examplePlan(t), nil, "canceled"},
		"watch":    {context.Background(), examplePlan(t), []string{"-watch"}, "-watch is true, want false for a plan with watchPort 0"},
		"no watch": {context.Background(), tproxyPlan(t), nil, "-watch is false, want true for a plan with watchPort 15121"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv(plan.Env, test.env)
			if err := run(test.ctx, test.args, io.Discard); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want an error that says %q", err, test.want)
			}
		})
	}
}

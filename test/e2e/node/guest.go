package node

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"

	"github.com/meshvirt/meshvirt/test/e2e/netlab/agent"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/kubevirt"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/netns"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/sidecar"
)

// recordedPodIP is the pod's address in the recordings of KubeVirt's rules.
const recordedPodIP = "10.244.1.17"

var guestIP = netip.MustParseAddr("10.0.2.2")

// Guest is a network namespace behind the bridge of a virt-launcher pod.
type Guest struct {
	*agent.Client
	// Pod is the pod's network namespace.
	Pod *netns.Namespace

	guest *netns.Namespace
}

// StartGuest does to a running virt-launcher pod, from outside as virt-handler does, what makes the
// masquerade binding: the bridge, the sysctls and KubeVirt's rules as recorded. Then it starts the guest.
func (c *Cluster) StartGuest(ctx context.Context, pod *corev1.Pod, recording string) (_ *Guest, err error) {
	rules, err := kubevirt.Rules(recording)
	if err != nil {
		return nil, err
	}
	pid, err := process(pod, "compute")
	if err != nil {
		return nil, err
	}
	g := &Guest{}
	defer func() {
		if err != nil {
			g.Close()
		}
	}()
	if g.Pod, err = netns.Join(pod.Name, fmt.Sprintf("/proc/%d/ns/net", pid)); err != nil {
		return nil, err
	}
	if g.guest, err = netns.New("guest of " + pod.Name); err != nil {
		return nil, err
	}
	inPod := func(input, program string, args ...string) error {
		cmd := exec.CommandContext(ctx, program, args...)
		cmd.Stdin = strings.NewReader(input)
		_, err := g.Pod.Run(cmd)
		return err
	}
	for _, args := range []string{
		"link add k6t-eth0 address 02:00:00:00:00:00 type bridge",
		"addr add 10.0.2.1/24 dev k6t-eth0",
		"link set k6t-eth0 up",
	} {
		if err := inPod("", "ip", strings.Fields(args)...); err != nil {
			return nil, err
		}
	}
	for _, key := range []string{"ipv4/ip_forward", "ipv4/conf/k6t-eth0/route_localnet"} {
		if err := g.Pod.Sysctl(key, "1"); err != nil {
			return nil, err
		}
	}
	if err := inPod(strings.ReplaceAll(rules, recordedPodIP, pod.Status.PodIP), "nft", "-f", "-"); err != nil {
		return nil, err
	}
	if err := g.Pod.Do(g.plug); err != nil {
		return nil, fmt.Errorf("connect the guest: %w", err)
	}
	cmd := exec.Command(filepath.Join(c.dir, "standin/root/usr/local/bin/pilot-agent"), "agent")
	if g.Client, err = talk(cmd, g.guest.Start); err != nil {
		return nil, err
	}
	err = g.Configure(ctx, agent.Configure{Link: "eth0", Addrs: []netip.Prefix{netip.PrefixFrom(guestIP, 24)}, Gateways: []netip.Addr{netip.MustParseAddr("10.0.2.1")}})
	if err != nil {
		return nil, err
	}
	return g, g.Listen(ctx,
		agent.Listen{Network: "tcp", Addr: netip.MustParseAddrPort("0.0.0.0:80"), Kind: agent.Echo},
		agent.Listen{Network: "tcp", Addr: netip.MustParseAddrPort("0.0.0.0:22"), Kind: agent.Banner})
}

// plug makes the cable from the bridge to the guest.
func (g *Guest) plug() error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "tap0"
	tap := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(g.guest.File().Fd())}
	if err := netlink.LinkAdd(tap); err != nil {
		return err
	}
	bridge, err := netlink.LinkByName("k6t-eth0")
	if err != nil {
		return err
	}
	return errors.Join(netlink.LinkSetMaster(tap, bridge), netlink.LinkSetUp(tap))
}

// Close ends the guest. The pod stays.
func (g *Guest) Close() {
	for _, ns := range []*netns.Namespace{g.guest, g.Pod} {
		if ns != nil {
			ns.Close()
		}
	}
}

// Agent starts an agent in a container of a pod of stand-ins, by kubectl exec.
func (c *Cluster) Agent(ctx context.Context, pod *corev1.Pod) (*agent.Client, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(c.programs, "kubectl"), "--kubeconfig="+c.admin, "exec", "-i", "-n", pod.Namespace, pod.Name, "--", "pilot-agent", "agent")
	return talk(cmd, (*exec.Cmd).Start)
}

// talk starts an agent that speaks on its standard input and output.
func talk(cmd *exec.Cmd, start func(*exec.Cmd) error) (*agent.Client, error) {
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	cmd.Stderr = os.Stderr
	if err := start(cmd); err != nil {
		return nil, fmt.Errorf("start an agent: %w", err)
	}
	return agent.NewClient(struct {
		io.Reader
		io.WriteCloser
	}{out, in}), nil
}

// containerID gives the runtime's name of a container that was started.
func containerID(pod *corev1.Pod, name string) (string, error) {
	for _, s := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
		if _, id, ok := strings.Cut(s.ContainerID, "://"); ok && s.Name == name {
			return id, nil
		}
	}
	return "", fmt.Errorf("pod %s has no started container %s", pod.Name, name)
}

// process gives the first process of a running container: its cgroup has the container's name.
func process(pod *corev1.Pod, name string) (pid int, err error) {
	id, err := containerID(pod, name)
	if err != nil {
		return 0, err
	}
	files, err := filepath.Glob("/proc/[0-9]*/cgroup")
	if err != nil {
		return 0, err
	}
	var pids []int
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil || !strings.Contains(string(b), id) {
			continue // it ended, or is another's
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err != nil {
			return 0, err
		}
		pids = append(pids, pid)
	}
	if len(pids) == 0 {
		return 0, fmt.Errorf("container %s of pod %s has no process", name, pod.Name)
	}
	return slices.Min(pids), nil
}

// took reads from the log of the pod's sidecar which of its listeners took connections to the destination.
func (c *Cluster) took(ctx context.Context, pod *corev1.Pod, destination netip.AddrPort) ([]sidecar.Direction, error) {
	log, err := c.Kubectl(ctx, "logs", "-n", pod.Namespace, pod.Name, "-c", "istio-proxy")
	if err != nil {
		return nil, err
	}
	seen := map[int]sidecar.Event{} // more may be told of one
	for lines := bufio.NewScanner(strings.NewReader(log)); lines.Scan(); {
		var e sidecar.Event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return nil, fmt.Errorf("log of the sidecar: %q: %w", lines.Text(), err)
		}
		if e.Original == destination {
			seen[e.Order] = e
		}
	}
	var all []sidecar.Direction
	for _, e := range seen {
		all = append(all, e.Direction)
	}
	return all, nil
}

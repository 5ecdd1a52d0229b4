package netlab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/meshvirt/meshvirt/test/e2e/netlab/vm"
)

// SlirpGuestIP4 is what slirp's DHCP server gives the guest, and SlirpGateway what it calls itself.
var (
	SlirpGuestIP4 = netip.MustParseAddr("10.0.2.15")
	SlirpGateway  = netip.MustParseAddr("10.0.2.2")
)

// passtReady bounds passt's start, in which it binds every port that it is told to.
const passtReady = 30 * time.Second

// StartPasst boots a machine of its own for the pod, whose network is passt's: the guest has the pod's
// addresses. Program is passt with what has to stand before its arguments; tcp and udp are the values of its
// options -t and -u. It is started as by KubeVirt 1.0, which says more of it than a command line can tell of
// later versions, where libvirt starts it.
func (l *Lab) StartPasst(ctx context.Context, program []string, tcp, udp string) error {
	if err := l.allowLauncher(); err != nil {
		return err
	}
	if l.DualStack {
		// Without it passt would leave IPv6 out. A real pod has had one for long by now.
		if err := l.waitLinkLocal(); err != nil {
			return err
		}
	}
	dir, err := os.MkdirTemp("", "passt")
	if err != nil {
		return err
	}
	l.closers = append(l.closers, func() { os.RemoveAll(dir) })
	// Passt has no privileges left, or is virt-launcher's user already, when it makes its socket there.
	if err := os.Chmod(dir, 0o777); err != nil {
		return err
	}
	socket := filepath.Join(dir, "socket")
	args := append(program[:len(program):len(program)], "--runas", fmt.Sprint(launcherUID), "-e", "-t", tcp, "-u", udp, "--foreground", "--socket", socket)
	cmd, out := exec.Command(args[0], args[1:]...), &strings.Builder{}
	cmd.Stdout, cmd.Stderr = out, out
	if err := l.pod.Start(cmd); err != nil {
		return fmt.Errorf("start passt: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	l.closers = append(l.closers, func() { _ = cmd.Process.Kill() })
	for wait := time.After(passtReady); ; {
		err := os.Chown(socket, launcherUID, launcherUID)
		if err == nil {
			break
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		select {
		case err := <-ended:
			return fmt.Errorf("passt ended: %v\n%s", err, out)
		case <-wait:
			return errors.New("passt does not listen")
		case <-time.After(probeInterval):
		}
	}
	addrs, gateways := []netip.Prefix{netip.PrefixFrom(PodIP4, 24)}, []netip.Addr{NodeIP4}
	if l.DualStack {
		addrs, gateways = append(addrs, netip.PrefixFrom(PodIP6, 64)), append(gateways, NodeIP6)
	}
	return l.bootBeside(ctx, "passt", "stream,server=off,addr.type=unix,addr.path="+socket, addrs, gateways)
}

// waitLinkLocal waits until the kernel has given the pod's interface a link-local address.
func (l *Lab) waitLinkLocal() error {
	for range int(passtReady / probeInterval) {
		found := false
		err := l.pod.Do(func() error {
			link, err := netlink.LinkByName(PodLink)
			if err != nil {
				return err
			}
			addrs, err := netlink.AddrList(link, netlink.FAMILY_V6)
			found = slices.ContainsFunc(addrs, func(a netlink.Addr) bool { return a.IP.IsLinkLocalUnicast() && a.Flags&unix.IFA_F_TENTATIVE == 0 })
			return err
		})
		if found || err != nil {
			return err
		}
		time.Sleep(probeInterval)
	}
	return errors.New("the pod has no link-local address")
}

// StartSlirp boots a machine of its own for the pod, whose network is qemu's user mode one: these ports of the
// pod are forwarded to the guest.
func (l *Lab) StartSlirp(ctx context.Context, tcp, udp []uint16) error {
	if err := l.allowLauncher(); err != nil {
		return err
	}
	network := "user,net=10.0.2.0/24"
	for protocol, ports := range map[string][]uint16{"tcp": tcp, "udp": udp} {
		for _, port := range ports {
			network += fmt.Sprintf(",hostfwd=%s::%d-:%d", protocol, port, port)
		}
	}
	return l.bootBeside(ctx, "slirp", network, []netip.Prefix{netip.PrefixFrom(SlirpGuestIP4, 24)}, []netip.Addr{SlirpGateway})
}

// allowLauncher has the sysctls that KubeVirt sets in such a pod: virt-launcher's user may listen on every
// port, and send echo requests.
func (l *Lab) allowLauncher() error {
	return errors.Join(
		l.pod.Sysctl("ipv4/ip_unprivileged_port_start", "0"),
		l.pod.Sysctl("ipv4/ping_group_range", fmt.Sprintf("%d %d", launcherUID, launcherUID)))
}

func (l *Lab) bootBeside(ctx context.Context, speaker, network string, addrs []netip.Prefix, gateways []netip.Addr) error {
	machine, err := vm.StartIn(ctx, l.program, l.pod, launcherUID, network)
	if err != nil {
		return err
	}
	l.closers = append(l.closers, func() { machine.Close() })
	l.speaker, l.Guest = speaker, machine.Client
	for _, port := range []uint16{HTTPPort, AppPort, SSHPort, UDPPort} {
		l.ports[port] = speaker
	}
	if err := l.serveInGuest(ctx, addrs, gateways); err != nil {
		return fmt.Errorf("%w\n%s", err, machine.Console())
	}
	return nil
}

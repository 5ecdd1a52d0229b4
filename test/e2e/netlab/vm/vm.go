// Package vm runs a real virtual machine for the lab: qemu, without hardware virtualisation, Debian's
// kernel, and the agent as its only process. With a tap device it boots once and can then be the guest of
// one pod after the other: the device moves between network namespaces. Without one it lives in a pod.
package vm

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/meshvirt/meshvirt/test/e2e/netlab/agent"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/netns"
)

// TapName is what KubeVirt calls the tap device of a pod's primary interface.
const TapName = "tap0"

// MAC is the hardware address of the machine's interface.
const MAC = "02:4d:56:00:00:02"

// Link is the name of the interface inside the machine: the kernel's own for the first one.
const Link = "eth0"

// bootTimeout bounds the boot, which takes 2 to 5 seconds on an idle machine.
const bootTimeout = 90 * time.Second

// VM is a running virtual machine.
type VM struct {
	*agent.Client
	home *netns.Namespace // of a machine with a tap device: where that is while no pod has it
	cmd  *exec.Cmd
	tap  *os.File
	tail tail
}

// Start boots a machine with a tap device. Program is the static labnode binary, which becomes its init.
func Start(ctx context.Context, program *os.File) (*VM, error) {
	home, err := netns.New("vm")
	if err != nil {
		return nil, err
	}
	v := &VM{home: home}
	err = home.Do(func() (err error) {
		v.tap, err = openTap(TapName)
		return err
	})
	if err != nil {
		err = fmt.Errorf("make a tap device: %w", err)
	} else {
		err = v.boot(ctx, program, Extra{}, home, 0, fmt.Sprintf("tap,fd=%d", tapFD))
	}
	if err != nil {
		v.Close()
		return nil, err
	}
	return v, nil
}

// StartIn boots a machine that has its network from a process. Qemu runs in a pod's namespace as a user, and
// network is the value of its option -netdev, without an id. The machine ends with the namespace.
func StartIn(ctx context.Context, program *os.File, pod *netns.Namespace, uid uint32, network string) (*VM, error) {
	v := &VM{}
	if err := v.boot(ctx, program, Extra{}, pod, uid, network); err != nil {
		v.Close()
		return nil, err
	}
	return v, nil
}

// StartAlone boots a machine without a network, whose kernel can do more than this one's.
func StartAlone(ctx context.Context, program *os.File, x Extra) (*VM, error) {
	home, err := netns.New("vm")
	if err != nil {
		return nil, err
	}
	v := &VM{home: home}
	if err := v.boot(ctx, program, x, home, 0, ""); err != nil {
		v.Close()
		return nil, err
	}
	return v, nil
}

// File descriptors that qemu gets. The kernel is one because qemu's user need not reach its directory.
const (
	initrdFD = iota + 3
	kernelFD
	agentFD
	tapFD
)

func (v *VM) boot(ctx context.Context, program *os.File, x Extra, ns *netns.Namespace, uid uint32, network string) error {
	dir, err := KernelDir()
	if err != nil {
		return err
	}
	initrd, err := initramfs(dir, program, x)
	if err != nil {
		return fmt.Errorf("make the initramfs: %w", err)
	}
	defer initrd.Close()
	kernel, err := os.Open(filepath.Join(dir, "vmlinuz"))
	if err != nil {
		return err
	}
	defer kernel.Close()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socketpair: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "agent"), os.NewFile(uintptr(pair[1]), "agent")
	defer theirs.Close()
	conn, err := net.FileConn(ours)
	ours.Close()
	if err != nil {
		return err
	}
	v.Client = agent.NewClient(conn)
	v.cmd = exec.Command("qemu-system-x86_64",
		"-accel", "tcg", "-machine", "pc", "-cpu", "max", "-m", "512", "-nodefaults", "-no-user-config",
		"-display", "none", "-no-reboot", "-kernel", fdPath(kernelFD), "-initrd", fdPath(initrdFD),
		"-append", "console=ttyS0 quiet panic=-1 tsc=reliable mitigations=off random.trust_cpu=on",
		"-serial", "stdio",
		"-device", "virtio-serial-pci", "-chardev", fmt.Sprintf("socket,id=agent,fd=%d", agentFD), "-device", "virtserialport,chardev=agent")
	if network != "" {
		v.cmd.Args = append(v.cmd.Args, "-netdev", network+",id=net", "-device", "virtio-net-pci,netdev=net,romfile=,mac="+MAC)
	}
	v.cmd.ExtraFiles = []*os.File{initrd, kernel, theirs}
	if v.tap != nil {
		v.cmd.ExtraFiles = append(v.cmd.ExtraFiles, v.tap)
	}
	v.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	v.cmd.Stdout, v.cmd.Stderr = &v.tail, &v.tail
	if err := ns.Start(v.cmd); err != nil {
		v.cmd = nil
		return fmt.Errorf("start qemu: %w", err)
	}
	ended := make(chan error, 1)
	go func(cmd *exec.Cmd) {
		ended <- cmd.Wait()
		conn.Close()
	}(v.cmd)
	if err := v.Ready(ctx, bootTimeout); err != nil {
		select {
		case end := <-ended:
			err = fmt.Errorf("qemu ended: %v", end)
		default:
		}
		return fmt.Errorf("wait for the virtual machine: %w\n%s", err, v.Console())
	}
	return nil
}

func fdPath(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

// Attach moves the machine's tap device to a pod's namespace, where it becomes a port of bridge.
func (v *VM) Attach(pod *netns.Namespace, bridge string) error {
	if err := v.home.Do(func() error { return moveTo(pod) }); err != nil {
		return fmt.Errorf("move %s to %s: %w", TapName, pod.Name(), err)
	}
	return pod.Do(func() error { return Plug(TapName, bridge) })
}

// Detach takes the tap device back. It must be called before the pod's namespace ends, or the
// device ends with it.
func (v *VM) Detach(pod *netns.Namespace) error {
	if err := pod.Do(func() error { return moveTo(v.home) }); err != nil {
		return fmt.Errorf("move %s back: %w", TapName, err)
	}
	return nil
}

func moveTo(ns *netns.Namespace) error {
	link, err := netlink.LinkByName(TapName)
	if err != nil {
		return err
	}
	if err := netlink.LinkSetNoMaster(link); err != nil {
		return err
	}
	return netlink.LinkSetNsFd(link, int(ns.File().Fd()))
}

// Plug makes a link a port of a bridge in the calling thread's namespace.
func Plug(name, bridge string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	br, err := netlink.LinkByName(bridge)
	if err != nil {
		return fmt.Errorf("bridge %s: %w", bridge, err)
	}
	if err := netlink.LinkSetMaster(link, br); err != nil {
		return err
	}
	return netlink.LinkSetUp(link)
}

// Close ends the machine.
func (v *VM) Close() error {
	if v.cmd != nil {
		_ = v.cmd.Process.Kill()
	}
	if v.Client != nil {
		v.Client.Close()
	}
	if v.tap != nil {
		v.tap.Close()
	}
	if v.home == nil {
		return nil
	}
	return v.home.Close()
}

// openTap makes a tap device that lives as long as the file is open, here or in qemu.
func openTap(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	req, err := unix.NewIfreq(name)
	if err != nil {
		return nil, err
	}
	// IFF_VNET_HDR carries checksum and segmentation offloads, as with KubeVirt's tap devices.
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// KernelDir is the newest of the directories that "tools/setup.sh guest" makes.
func KernelDir() (string, error) {
	cache := os.Getenv("MESHVIRT_CACHE")
	if cache == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			return "", err
		}
		cache = filepath.Join(user, "meshvirt")
	}
	dirs, err := filepath.Glob(filepath.Join(cache, "guest-*"))
	if err != nil {
		return "", err
	}
	var newest string
	var at time.Time
	for _, dir := range dirs {
		if info, err := os.Stat(filepath.Join(dir, "modules")); err == nil && (newest == "" || info.ModTime().After(at)) {
			newest, at = dir, info.ModTime()
		}
	}
	if newest == "" {
		return "", fmt.Errorf("no kernel for the virtual machine in %s: want one from tools/setup.sh guest", cache)
	}
	return newest, nil
}

// Console is the last that the machine, or qemu, has said. It explains an end.
func (v *VM) Console() string {
	v.tail.Lock()
	defer v.tail.Unlock()
	return strings.TrimSpace(string(v.tail.b))
}

// tail keeps the last lines of the console.
type tail struct {
	sync.Mutex
	b []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.Lock()
	defer t.Unlock()
	t.b = append(t.b, p...)
	t.b = t.b[max(0, len(t.b)-8192):]
	return len(p), nil
}

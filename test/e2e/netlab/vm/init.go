package vm

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meshvirt/meshvirt/test/e2e/netlab/agent"
)

// port is the serial port by which the lab talks to the agent: the first port of the first
// virtio console.
const port = "/dev/vport0p1"

// moduleDir holds the kernel modules in the initramfs, numbered in the order in which they load.
const moduleDir = "/modules"

// Init is the first process of the virtual machine: it makes the devices work and then is the agent.
// It does not return while the lab lives. The kernel panics, and qemu ends, when it does.
func Init() error {
	for _, m := range []struct{ source, path string }{{"devtmpfs", "/dev"}, {"proc", "/proc"}, {"sysfs", "/sys"}} {
		if err := os.MkdirAll(m.path, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.source, m.path, m.source, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.path, err)
		}
	}
	if err := os.Setenv("PATH", "/bin"); err != nil {
		return err
	}
	// A guest with one interface does not need duplicate address detection, which takes a second; and the lab
	// says which addresses it has, not routers such as passt. Links that the modules make inherit it.
	for _, key := range []string{"accept_dad", "accept_ra"} {
		if err := os.WriteFile("/proc/sys/net/ipv6/conf/default/"+key, []byte("0"), 0); err != nil {
			return err
		}
	}
	modules, err := filepath.Glob(moduleDir + "/*.ko")
	if err != nil {
		return err
	}
	for _, path := range modules {
		if err := load(path); err != nil {
			return fmt.Errorf("load %s: %w", path, err)
		}
	}
	f, err := open(port)
	if err != nil {
		return err
	}
	return agent.Serve("guest", f)
}

func load(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	err = unix.FinitModule(int(f.Fd()), "", 0)
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}

// open waits for the port: the host announces it after the driver has loaded.
func open(path string) (*os.File, error) {
	for range 500 {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		time.Sleep(10 * time.Millisecond)
	}
	return nil, fmt.Errorf("%s did not appear", path)
}

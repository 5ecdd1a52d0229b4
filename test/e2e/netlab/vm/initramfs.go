package vm

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/cavaliergopher/cpio"
	"golang.org/x/sys/unix"
)

// modules are what Debian's cloud kernel has as modules and the machine needs, in order of loading.
var modules = []string{
	"drivers/virtio/virtio_ring.ko",
	"drivers/virtio/virtio.ko",
	"drivers/virtio/virtio_pci_modern_dev.ko",
	"drivers/virtio/virtio_pci_legacy_dev.ko",
	"drivers/virtio/virtio_pci.ko",
	"drivers/char/virtio_console.ko",
	"net/core/failover.ko",
	"drivers/net/net_failover.ko",
	"drivers/net/virtio_net.ko",
}

// busybox gives the demo's audience something to run in the machine.
const busybox = "/bin/busybox"

// applets of busybox that the machine has by name.
var applets = []string{"cat", "ip", "ls", "nc", "nslookup", "ping", "ps", "sh", "uname", "wget"}

const program755 = cpio.TypeReg | 0o755

// initramfs makes the machine's file system as a file in memory.
func initramfs(kernel string, program *os.File) (*os.File, error) {
	fd, err := unix.MemfdCreate("initramfs", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "initramfs")
	if err := fill(cpio.NewWriter(f), kernel, program); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func fill(w *cpio.Writer, kernel string, program *os.File) error {
	for _, dir := range []string{"bin", "modules", "tmp"} {
		if err := w.WriteHeader(&cpio.Header{Name: dir, Mode: cpio.TypeDir | 0o755}); err != nil {
			return err
		}
	}
	info, err := program.Stat()
	if err != nil {
		return err
	}
	if err := add(w, "init", program755, io.NewSectionReader(program, 0, info.Size()), info.Size()); err != nil {
		return err
	}
	for i, m := range modules {
		found, err := filepath.Glob(filepath.Join(kernel, "modules", "*", "kernel", m))
		if err != nil {
			return err
		}
		if len(found) != 1 {
			return fmt.Errorf("found %d modules %s below %s, want 1", len(found), m, kernel)
		}
		if err := addFile(w, fmt.Sprintf("modules/%02d-%s", i, filepath.Base(m)), found[0]); err != nil {
			return err
		}
	}
	if err := addFile(w, "bin/busybox", busybox); err == nil {
		for _, a := range applets {
			if err := add(w, "bin/"+a, cpio.TypeSymlink|0o777, strings.NewReader("busybox"), int64(len("busybox"))); err != nil {
				return err
			}
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return w.Close()
}

func addFile(w *cpio.Writer, name, from string) error {
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	return add(w, name, program755, f, info.Size())
}

// add writes a file or, as the content of a symbolic link, where it points.
func add(w *cpio.Writer, name string, mode cpio.FileMode, content io.Reader, size int64) error {
	if err := w.WriteHeader(&cpio.Header{Name: name, Mode: mode, Size: size}); err != nil {
		return err
	}
	_, err := io.Copy(w, content)
	return err
}

package vm

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cavaliergopher/cpio"
	"golang.org/x/sys/unix"
)

// modules are what Debian's cloud kernel has as modules and every machine needs, without what they depend on.
var modules = []string{"virtio_pci", "virtio_console", "virtio_net"}

// Extra is what a machine has besides.
type Extra struct {
	// Modules of the kernel, by name.
	Modules []string
	// Programs of this machine by path, with the libraries that they are linked to.
	Programs []string
	// Files by path in the machine. They may be run.
	Files map[string]*os.File
}

// busybox gives the demo's audience something to run in the machine.
const busybox = "/bin/busybox"

// applets of busybox that the machine has by name.
var applets = []string{"cat", "ip", "ls", "nc", "nslookup", "ping", "ps", "sh", "uname", "wget"}

const program755 = cpio.TypeReg | 0o755

// initramfs makes the machine's file system as a file in memory.
func initramfs(kernel string, program *os.File, x Extra) (*os.File, error) {
	fd, err := unix.MemfdCreate("initramfs", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "initramfs")
	if err := fill(cpio.NewWriter(f), kernel, program, x); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func fill(w *cpio.Writer, kernel string, program *os.File, x Extra) error {
	for _, dir := range []string{"bin", "modules", "run", "tmp"} {
		if err := w.WriteHeader(&cpio.Header{Name: dir, Mode: cpio.TypeDir | 0o755}); err != nil {
			return err
		}
	}
	files := map[string]*os.File{"init": program}
	maps.Copy(files, x.Files)
	for name, f := range files {
		info, err := f.Stat()
		if err != nil {
			return err
		}
		if err := add(w, name, program755, io.NewSectionReader(f, 0, info.Size()), info.Size()); err != nil {
			return err
		}
	}
	paths, err := inOrder(filepath.Join(kernel, "modules"), slices.Concat(modules, x.Modules))
	if err != nil {
		return err
	}
	for i, path := range paths {
		if err := addFile(w, fmt.Sprintf("modules/%03d-%s", i, filepath.Base(path)), path); err != nil {
			return err
		}
	}
	if err := addPrograms(w, x.Programs); err != nil {
		return err
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

package container

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// File descriptors that Exec expects.
const (
	specFile  = 3
	firstFile = 4
)

// Exec turns the calling process into a container. Start runs it in new mount and process
// namespaces; the specification comes by a file descriptor. It returns only to say what failed.
func Exec() error {
	// Capabilities are a thread's; execve keeps those of the thread that calls it.
	runtime.LockOSThread()
	var s Spec
	f := os.NewFile(specFile, "spec")
	if err := json.NewDecoder(f).Decode(&s); err != nil {
		return fmt.Errorf("read the container's specification: %w", err)
	}
	f.Close()
	unix.CloseOnExec(firstFile + len(s.Files)) // this program
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	root := s.enter
	if s.HostRoot {
		root = s.keepRoot
	}
	if err := root(); err != nil {
		return err
	}
	if err := unix.Chdir(s.Dir); err != nil {
		return fmt.Errorf("change to directory %s: %w", s.Dir, err)
	}
	// Looking in the container's PATH needs the container's environment.
	os.Clearenv()
	for _, e := range s.Env {
		name, value, _ := strings.Cut(e, "=")
		os.Setenv(name, value)
	}
	path, err := exec.LookPath(s.Args[0])
	if err != nil {
		return err
	}
	if err := s.restrict(); err != nil {
		return err
	}
	return fmt.Errorf("execute %s: %w", path, unix.Exec(path, s.Args, s.Env))
}

// keepRoot changes only /etc/resolv.conf.
func (s Spec) keepRoot() error {
	tmp := os.TempDir()
	if err := unix.Mount("tmpfs", tmp, "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mount %s: %w", tmp, err)
	}
	resolv := filepath.Join(tmp, "resolv.conf")
	if err := os.WriteFile(resolv, []byte(s.ResolvConf), 0o644); err != nil {
		return err
	}
	if err := unix.Mount(resolv, "/etc/resolv.conf", "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount /etc/resolv.conf: %w", err)
	}
	// The file stays where it was mounted, and the directory is as before.
	if err := unix.Unmount(tmp, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount %s: %w", tmp, err)
	}
	return nil
}

// enter makes a root file system of the image's files in memory and changes to it.
func (s Spec) enter() error {
	root := os.TempDir()
	if err := unix.Mount("tmpfs", root, "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mount the root file system: %w", err)
	}
	for i, path := range s.Files {
		f := os.NewFile(uintptr(firstFile+i), path)
		if err := copyFile(filepath.Join(root, path), f); err != nil {
			return err
		}
		f.Close()
	}
	for _, dir := range []string{"proc", "dev", "etc"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(root, "etc/resolv.conf"), []byte(s.ResolvConf), 0o644); err != nil {
		return err
	}
	if err := devices(filepath.Join(root, "dev")); err != nil {
		return err
	}
	for _, t := range s.Tmpfs {
		path := filepath.Join(root, t.Path)
		if err := os.MkdirAll(path, 0o755); err != nil {
			return err
		}
		var flags uintptr = unix.MS_NOSUID | unix.MS_NODEV
		if t.ReadOnly {
			flags |= unix.MS_RDONLY
		}
		if err := unix.Mount("tmpfs", path, "tmpfs", flags, "mode=1777"); err != nil {
			return fmt.Errorf("mount %s: %w", t.Path, err)
		}
	}
	if err := unix.Chdir(root); err != nil {
		return err
	}
	// The old root is mounted over the new one and then goes (pivot_root(2), NOTES).
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("change root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount the old root: %w", err)
	}
	if err := s.mountProc(); err != nil {
		return err
	}
	if s.ReadOnly {
		if err := unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
			return fmt.Errorf("make the root file system read-only: %w", err)
		}
	}
	return nil
}

func copyFile(path string, from *os.File) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	to, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	// Other containers read the same open file: the offset is not ours.
	if _, err := io.Copy(to, io.NewSectionReader(from, 0, 1<<62)); err != nil {
		to.Close()
		return fmt.Errorf("copy %s: %w", path, err)
	}
	return to.Close()
}

func devices(dir string) error {
	for name, minor := range map[string]uint32{"null": 3, "zero": 5, "full": 7, "random": 8, "urandom": 9} {
		path := filepath.Join(dir, name)
		if err := unix.Mknod(path, unix.S_IFCHR|0o666, int(unix.Mkdev(1, minor))); err != nil {
			return fmt.Errorf("make /dev/%s: %w", name, err)
		}
		if err := os.Chmod(path, 0o666); err != nil { // past the umask
			return err
		}
	}
	return nil
}

// mountProc mounts /proc, of which the parts that belong to the machine are read-only.
func (s Spec) mountProc() error {
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := unix.Mount("proc", "/proc", "proc", flags, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if s.Privileged {
		return nil
	}
	for _, path := range []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"} {
		err := unix.Mount(path, path, "", unix.MS_BIND|unix.MS_REC, "")
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err == nil {
			err = unix.Mount("", path, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|flags, "")
		}
		if err != nil {
			return fmt.Errorf("make %s read-only: %w", path, err)
		}
	}
	return nil
}

// restrict takes on the container's identity. For root the bounding set is what execve will
// permit; for others execve takes all capabilities away, for the ambient set is empty.
func (s Spec) restrict() error {
	keep := mask(s.Capabilities)
	if s.Privileged {
		var err error
		if keep, err = permitted(); err != nil {
			return err
		}
	}
	for i := range Capabilities {
		if keep&(1<<i) != 0 {
			continue
		}
		// EINVAL: the kernel is older than the capability.
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(i), 0, 0, 0); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("drop %s: %w", Capabilities[i], err)
		}
	}
	if err := unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("keep capabilities: %w", err)
	}
	if err := syscall.Setgroups(s.Groups); err != nil {
		return fmt.Errorf("set groups %v: %w", s.Groups, err)
	}
	if err := syscall.Setresgid(int(s.GID), int(s.GID), int(s.GID)); err != nil {
		return fmt.Errorf("set group %d: %w", s.GID, err)
	}
	if err := syscall.Setresuid(int(s.UID), int(s.UID), int(s.UID)); err != nil {
		return fmt.Errorf("set user %d: %w", s.UID, err)
	}
	var data [2]unix.CapUserData
	for i := range data {
		part := uint32(keep >> (32 * i))
		data[i] = unix.CapUserData{Effective: part, Permitted: part}
	}
	if err := unix.Capset(&capHeader, &data[0]); err != nil {
		return fmt.Errorf("set capabilities: %w", err)
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("clear ambient capabilities: %w", err)
	}
	if s.NoNewPrivs {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return fmt.Errorf("set no_new_privs: %w", err)
		}
	}
	// The change of identity has cleared what Start had set.
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return fmt.Errorf("set the parent-death signal: %w", err)
	}
	return nil
}

// capHeader asks for capabilities of 64 bits in two parts, of the calling thread.
var capHeader = unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}

// permitted is what the caller has: all that a privileged container can get.
func permitted() (uint64, error) {
	var data [2]unix.CapUserData
	if err := unix.Capget(&capHeader, &data[0]); err != nil {
		return 0, fmt.Errorf("get capabilities: %w", err)
	}
	return uint64(data[1].Permitted)<<32 | uint64(data[0].Permitted), nil
}

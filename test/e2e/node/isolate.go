package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Environment variables that tell the inner process where it is.
const (
	dirEnv    = "MESHVIRT_NODE_DIR"
	cgroupEnv = "MESHVIRT_NODE_CGROUP"
)

// controllers are the cgroup hierarchies that a kubelet and its containers want.
var controllers = []string{"cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids"}

const cgroups = "/sys/fs/cgroup"

// Check says what keeps a kubelet from running here, if anything.
func Check() error {
	if os.Geteuid() != 0 {
		return errors.New("a node needs root: for namespaces, mounts and cgroups")
	}
	for _, c := range controllers {
		if _, err := os.Stat(filepath.Join(cgroups, c, "cgroup.procs")); err != nil {
			return fmt.Errorf("a node needs the cgroup hierarchies (version 1) %s below %s: %w", strings.Join(controllers, ", "), cgroups, err)
		}
	}
	for _, program := range []string{"containerd", "runc", "ip", "nft", "buildah"} {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("%w: run tools/setup.sh node buildah", err)
		}
	}
	return nil
}

// Isolated gives the directory and the cgroup that Isolate made for this process, if it did.
func Isolated() (dir, cgroup string, ok bool) {
	dir, cgroup = os.Getenv(dirEnv), os.Getenv(cgroupEnv)
	return dir, cgroup, dir != "" && cgroup != ""
}

// Isolate runs this program again, with the same arguments, in network, mount and process namespaces of
// its own and with a cgroup, and gives its exit code. Whatever the program starts there ends with it,
// and what it mounts goes; then its cgroups are removed. The caller removes dir, which is what it
// may write to.
func Isolate(dir string) (code int, err error) {
	removeStale()
	cgroup := fmt.Sprintf("meshvirt-node-%d", os.Getpid())
	if err := makeCgroups(cgroup); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, removeCgroups(cgroup)) }()

	// The end of the thread that starts it is the end of the process.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	inner := exec.CommandContext(ctx, "/proc/self/exe", os.Args[1:]...)
	inner.Env = append(os.Environ(), dirEnv+"="+dir, cgroupEnv+"="+cgroup)
	inner.Stdout, inner.Stderr = os.Stdout, os.Stderr
	inner.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID,
		Pdeathsig:  syscall.SIGKILL,
	}
	err = inner.Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.ExitCode() > 0 {
		return exit.ExitCode(), nil
	}
	return 0, err
}

// hidden are directories that the programs of a node write to whatever they are told: in the inner process
// they are empty, and in memory.
var hidden = []string{"/run", "/var/lib", "/var/log"}

// enter makes the namespaces of the inner process usable.
func enter() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	for _, dir := range hidden {
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=755"); err != nil {
			return fmt.Errorf("hide %s: %w", dir, err)
		}
	}
	return nil
}

func makeCgroups(name string) error {
	hierarchies, err := filepath.Glob(filepath.Join(cgroups, "*", "cgroup.procs")) // runc is in all of them
	if err != nil {
		return err
	}
	for _, procs := range hierarchies {
		dir := filepath.Join(filepath.Dir(procs), name)
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) { // two names may be one hierarchy
			return fmt.Errorf("make cgroup: %w", err)
		}
	}
	// On a node the pods share the CPUs with a group or two of other services. Here every process of other tests counts
	// as much as a new group: 1024 shares each.
	if err := os.WriteFile(filepath.Join(cgroups, "cpu", name, "cpu.shares"), []byte("65536"), 0o644); err != nil {
		return fmt.Errorf("make cgroup: %w", err)
	}
	// A new cpuset has no CPUs and takes no process.
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		b, err := os.ReadFile(filepath.Join(cgroups, "cpuset", file))
		if err == nil {
			err = os.WriteFile(filepath.Join(cgroups, "cpuset", name, file), b, 0o644)
		}
		if err != nil {
			return fmt.Errorf("make cgroup: %w", err)
		}
	}
	return nil
}

// removeCgroups removes the cgroups and those in them. Their processes have ended.
func removeCgroups(name string) error {
	tops, err := filepath.Glob(filepath.Join(cgroups, "*", name))
	if err != nil {
		return err
	}
	for _, top := range tops {
		var dirs []string
		walkErr := filepath.WalkDir(top, func(path string, d os.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return err
		})
		err = errors.Join(err, walkErr)
		for i := len(dirs) - 1; i >= 0; i-- {
			err = errors.Join(err, unix.Rmdir(dirs[i]))
		}
	}
	if err != nil {
		return fmt.Errorf("remove cgroups: %w", err)
	}
	return nil
}

// removeStale removes the cgroups of processes that were killed before they could.
func removeStale() {
	names, _ := filepath.Glob(filepath.Join(cgroups, "memory", "meshvirt-node-*"))
	for _, name := range names {
		name = filepath.Base(name)
		pid, err := strconv.Atoi(strings.TrimPrefix(name, "meshvirt-node-"))
		if err == nil && syscall.Kill(pid, 0) == syscall.ESRCH {
			_ = removeCgroups(name)
		}
	}
}

// Package container starts containers as a container runtime would, without one: with a root file
// system of their own and the user, capabilities and environment that a specification says.
package container

import (
	"os"
	"strings"
)

// Image is what a container's root file system has besides what every runtime adds.
type Image struct {
	// Files by absolute path. All are executable.
	Files map[string]*os.File
	// Entrypoint is used if the container gives no command.
	Entrypoint []string
	// User and Group apply if neither container nor pod gives one.
	User, Group uint32
}

// Spec is a container in the terms of the kernel.
type Spec struct {
	Args, Env    []string
	Dir          string
	UID, GID     uint32
	Groups       []int
	Capabilities []uint // numbers, sorted
	NoNewPrivs   bool
	Privileged   bool // all capabilities that the caller has, and /proc/sys writable
	ReadOnly     bool // the root file system
	Tmpfs        []Tmpfs
	ResolvConf   string
	Files        []string // absolute paths; the i-th is a copy of file descriptor firstFile+i
	HostRoot     bool     // keep the caller's root file system but for /etc/resolv.conf
}

// Tmpfs is an empty file system in memory. It stands for any volume.
type Tmpfs struct {
	Path     string
	ReadOnly bool
}

// Capabilities are the names of capabilities by number (linux/capability.h).
var Capabilities = strings.Fields(`CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE
	NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT
	SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP
	MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE`)

// mask is the set as a number, as /proc/self/status shows it.
func mask(set []uint) uint64 {
	var m uint64
	for _, i := range set {
		m |= 1 << i
	}
	return m
}

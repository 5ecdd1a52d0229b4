package netlab

import (
	"context"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/meshvirt/meshvirt/test/e2e/netlab/container"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/sidecar"
)

// boxLab has an image with a shell in it.
func boxLab(t *testing.T) *Lab {
	t.Helper()
	box, err := os.Open("/bin/busybox")
	do(t, err)
	t.Cleanup(func() { box.Close() })
	return newLab(t, Options{DualStack: true, Image: container.Image{Files: map[string]*os.File{"/busybox": box}}})
}

// run runs a shell script in a container and gives its output.
func run(t *testing.T, l *Lab, c corev1.Container, script string) string {
	t.Helper()
	c.Name, c.Command, c.Args = "box", []string{"/busybox", "sh", "-c"}, []string{script}
	p, err := l.Start(c)
	do(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	do(t, p.Wait(ctx))
	return p.Output()
}

// status gives some lines of the container's /proc/self/status.
func status(t *testing.T, l *Lab, sc *corev1.SecurityContext) map[string]string {
	t.Helper()
	got := map[string]string{}
	for _, line := range strings.Split(run(t, l, corev1.Container{SecurityContext: sc}, "/busybox cat /proc/self/status"), "\n") {
		name, value, _ := strings.Cut(line, ":")
		switch name {
		case "Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs":
			got[name] = strings.Join(strings.Fields(value), " ")
		}
	}
	return got
}

func TestContainerIdentity(t *testing.T) {
	t.Parallel()
	l := boxLab(t)
	netAdmin := &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}, Add: []corev1.Capability{"NET_ADMIN"}}
	const none = "0000000000000000"
	for name, c := range map[string]struct {
		sc   *corev1.SecurityContext
		want map[string]string
	}{
		"nothing said": {nil, map[string]string{
			"Uid": "0 0 0 0", "Gid": "0 0 0 0", "Groups": "", "NoNewPrivs": "0",
			"CapInh": none, "CapPrm": "00000000a80425fb", "CapEff": "00000000a80425fb", "CapBnd": "00000000a80425fb", "CapAmb": none}},
		"root with NET_ADMIN": {
			&corev1.SecurityContext{RunAsUser: new(int64(0)), RunAsGroup: new(int64(0)), AllowPrivilegeEscalation: new(false), Capabilities: netAdmin},
			map[string]string{
				"Uid": "0 0 0 0", "Gid": "0 0 0 0", "Groups": "", "NoNewPrivs": "1",
				"CapInh": none, "CapPrm": "0000000000001000", "CapEff": "0000000000001000", "CapBnd": "0000000000001000", "CapAmb": none}},
		"a user with NET_ADMIN, which it loses": {
			&corev1.SecurityContext{RunAsUser: new(int64(1500)), RunAsGroup: new(int64(1501)), Capabilities: netAdmin},
			map[string]string{
				"Uid": "1500 1500 1500 1500", "Gid": "1501 1501 1501 1501", "Groups": "", "NoNewPrivs": "0",
				"CapInh": none, "CapPrm": none, "CapEff": none, "CapBnd": "0000000000001000", "CapAmb": none}},
		"a user with nothing": {
			&corev1.SecurityContext{RunAsUser: new(int64(1500)), AllowPrivilegeEscalation: new(false), Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}}},
			map[string]string{
				"Uid": "1500 1500 1500 1500", "Gid": "0 0 0 0", "Groups": "", "NoNewPrivs": "1",
				"CapInh": none, "CapPrm": none, "CapEff": none, "CapBnd": none, "CapAmb": none}},
		"one less than usual": {
			&corev1.SecurityContext{Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"NET_RAW"}}},
			map[string]string{
				"Uid": "0 0 0 0", "Gid": "0 0 0 0", "Groups": "", "NoNewPrivs": "0",
				"CapInh": none, "CapPrm": "00000000a80405fb", "CapEff": "00000000a80405fb", "CapBnd": "00000000a80405fb", "CapAmb": none}},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, status(t, l, c.sc)); diff != "" {
				t.Errorf("/proc/self/status (-want +got)\n%s", diff)
			}
		})
	}
}

func TestContainerPodSecurity(t *testing.T) {
	t.Parallel()
	l := boxLab(t)
	l.Options.Pod = &corev1.Pod{Spec: corev1.PodSpec{SecurityContext: &corev1.PodSecurityContext{
		RunAsUser: new(int64(107)), RunAsGroup: new(int64(108)), FSGroup: new(int64(109)), RunAsNonRoot: new(true)}}}
	if got := status(t, l, nil); got["Uid"] != "107 107 107 107" || got["Gid"] != "108 108 108 108" || got["Groups"] != "109" {
		t.Errorf("got %v, want the pod's user, group and fsGroup", got)
	}
	err := l.RunInit(t.Context(), corev1.Container{Command: []string{"/busybox", "true"}, SecurityContext: &corev1.SecurityContext{RunAsUser: new(int64(0))}})
	if err == nil || !strings.Contains(err.Error(), "runAsNonRoot") {
		t.Errorf("got error %v, want root refused", err)
	}
}

func TestContainerFiles(t *testing.T) {
	t.Parallel()
	l := boxLab(t)
	readOnly := &corev1.SecurityContext{ReadOnlyRootFilesystem: new(true)}
	mounts := []corev1.VolumeMount{{Name: "scratch", MountPath: "/scratch"}}
	for name, c := range map[string]struct {
		sc     *corev1.SecurityContext
		script string
		want   string
	}{
		"only the image's files and the runtime's": {nil, "/busybox ls /", "busybox\ndev\netc\nproc\nscratch\n"},
		"the cluster's DNS":                        {nil, "/busybox cat /etc/resolv.conf", l.ResolvConf()},
		"a file on a writable root":                {nil, ">/x && echo written", "written\n"},
		"a file on a read-only root":               {readOnly, ">/x && echo written; true", "sh: can't create /x: Read-only file system\n"},
		"a file in a volume on a read-only root":   {readOnly, ">/scratch/x && echo written", "written\n"},
		"a sysctl": {&corev1.SecurityContext{Capabilities: &corev1.Capabilities{Add: []corev1.Capability{"NET_ADMIN"}}},
			"echo 1 >/proc/sys/net/ipv4/ip_forward; true", "sh: can't create /proc/sys/net/ipv4/ip_forward: Read-only file system\n"},
		"a sysctl, privileged": {&corev1.SecurityContext{Privileged: new(true)}, "echo 1 >/proc/sys/net/ipv4/ip_forward && echo written", "written\n"},
		"a mount":              {nil, "/busybox mount -t tmpfs none /scratch; true", "mount: permission denied (are you root?)\n"},
		"its own processes":    {nil, "echo $$$$; set -- /proc/[0-9]*; echo $#", "1\n1\n"},
		"the pod's network":    {nil, "/busybox ip -4 -o address show eth0 | /busybox grep -o '10.[0-9./]*' | /busybox head -1", "10.244.1.17/24\n"},
		"devices":              {nil, "echo lost >/dev/null; /busybox head -c 4 /dev/urandom | /busybox wc -c", "4\n"},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, run(t, l, corev1.Container{SecurityContext: c.sc, VolumeMounts: mounts}, c.script)); diff != "" {
				t.Errorf("output (-want +got)\n%s", diff)
			}
		})
	}
}

func TestContainerEnvironment(t *testing.T) {
	t.Parallel()
	l := boxLab(t)
	podIP := func(field string) *corev1.EnvVarSource {
		return &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: field}}
	}
	c := corev1.Container{Env: []corev1.EnvVar{
		{Name: "A", Value: "1"}, {Name: "B", Value: "$(A)2 $(NOT) $$(A)"},
		{Name: "IP", ValueFrom: podIP("status.podIP")}, {Name: "IPS", ValueFrom: podIP("status.podIPs")},
	}}
	want := "1 12 $(NOT) $(A) 10.244.1.17 10.244.1.17,fd00:10:244:1::11 none\n"
	if got := run(t, l, c, "echo $A $B $IP $IPS ${HOME:-none}"); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	c.Env = []corev1.EnvVar{{Name: "NODE", ValueFrom: podIP("spec.nodeName")}}
	c.Command = []string{"/busybox", "true"}
	if err := l.RunInit(t.Context(), c); err == nil || !strings.Contains(err.Error(), "spec.nodeName") {
		t.Errorf("got error %v, want spec.nodeName refused", err)
	}
}

func TestContainerLife(t *testing.T) {
	t.Parallel()
	l := boxLab(t)
	err := l.RunInit(t.Context(), corev1.Container{Name: "bad", Command: []string{"/busybox", "sh", "-c", "echo no such luck; exit 3"}})
	if err == nil || !strings.Contains(err.Error(), "init container bad: container: exit status 3\nno such luck") {
		t.Errorf("got error %v, want the container's code and output", err)
	}
	trap := []string{"/busybox", "sh", "-c", "trap 'echo bye; exit 0' TERM; echo up; while :; do /busybox sleep 0.01; done"}
	polite, err := l.Start(corev1.Container{Command: trap})
	do(t, err)
	waitOutput(t, polite, "up\n")
	do(t, polite.Stop(t.Context(), 20*time.Second))
	if polite.Output() != "up\nbye\n" {
		t.Errorf("output %q, want a goodbye", polite.Output())
	}
	// Process 1 of a namespace ignores signals that it does not handle.
	deaf, err := l.Start(corev1.Container{Command: []string{"/busybox", "sh", "-c", "echo up; /busybox sleep 600"}})
	do(t, err)
	waitOutput(t, deaf, "up\n")
	if err := deaf.Stop(t.Context(), 10*time.Millisecond); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("got error %v, want it killed", err)
	}
	left, err := l.Start(corev1.Container{Command: []string{"/busybox", "sleep", "600"}})
	do(t, err, l.Close())
	if err := syscall.Kill(left.Pid(), 0); err != syscall.ESRCH {
		t.Errorf("the container lives on after the lab: %v", err)
	}
}

func waitOutput(t *testing.T, p *container.Process, want string) {
	t.Helper()
	for range 2000 {
		if p.Output() == want {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("output is %q, want %q", p.Output(), want)
}

func TestProbe(t *testing.T) {
	t.Parallel()
	l := newLab(t, Options{})
	c := corev1.Container{Name: "istio-proxy", Ports: []corev1.ContainerPort{{Name: "health", ContainerPort: sidecar.Health}}}
	get := func(port intstr.IntOrString) *corev1.Probe {
		return &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/healthz/ready", Port: port}}}
	}
	if err := l.Probe(t.Context(), c, get(intstr.FromString("health"))); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("got error %v, want the probe refused while there is no sidecar", err)
	}
	do(t, l.StartSidecar(t.Context(), sidecar.Config{}))
	do(t, l.WaitReady(t.Context(), c, get(intstr.FromString("health"))), l.Probe(t.Context(), c, get(intstr.FromInt(sidecar.Health))))
}

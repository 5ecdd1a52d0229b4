// Package kubelet gives the meaning of a pod's specification as the kubelet and a container runtime
// understand it: what a container is run with.
package kubelet

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/meshvirt/meshvirt/test/e2e/netlab/container"
)

// Config is what a container gets from around it.
type Config struct {
	// Pod gives defaults (security context) and values (name) to its containers. Nil is an empty pod.
	Pod *corev1.Pod
	// PodIPs are the pod's addresses, the primary one first.
	PodIPs []netip.Addr
	// ResolvConf is the content of /etc/resolv.conf.
	ResolvConf string
	Image      container.Image
}

// defaultPath is what runtimes set if an image has none.
const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Resolve gives the meaning of c under cfg, and an error for what cannot be represented.
func Resolve(c corev1.Container, cfg Config) (container.Spec, error) {
	pod := cfg.Pod
	if pod == nil {
		pod = &corev1.Pod{}
	}
	s := container.Spec{Dir: "/", UID: cfg.Image.User, GID: cfg.Image.Group, ResolvConf: cfg.ResolvConf, Files: slices.Sorted(maps.Keys(cfg.Image.Files))}
	if c.WorkingDir != "" {
		s.Dir = c.WorkingDir
	}
	env, err := environment(c, cfg, pod)
	if err != nil {
		return container.Spec{}, err
	}
	s.Args = append(s.Args, c.Command...)
	if len(s.Args) == 0 {
		s.Args = append(s.Args, cfg.Image.Entrypoint...)
	}
	s.Args = append(s.Args, c.Args...)
	if len(s.Args) == 0 {
		return container.Spec{}, errors.New("want a command")
	}
	for i, a := range s.Args {
		s.Args[i] = expand(a, env)
	}
	s.Env = []string{defaultPath, "HOSTNAME=" + pod.Name}
	for _, e := range c.Env {
		s.Env = append(s.Env, e.Name+"="+env[e.Name])
	}
	for _, v := range c.VolumeMounts {
		s.Tmpfs = append(s.Tmpfs, container.Tmpfs{Path: v.MountPath, ReadOnly: v.ReadOnly})
	}
	err = secure(&s, c.SecurityContext, pod.Spec.SecurityContext)
	return s, err
}

func secure(s *container.Spec, sc *corev1.SecurityContext, psc *corev1.PodSecurityContext) error {
	if sc == nil {
		sc = &corev1.SecurityContext{}
	}
	if psc == nil {
		psc = &corev1.PodSecurityContext{}
	}
	if id := or(sc.RunAsUser, psc.RunAsUser); id != nil {
		s.UID = uint32(*id)
	}
	if id := or(sc.RunAsGroup, psc.RunAsGroup); id != nil {
		s.GID = uint32(*id)
	}
	for _, g := range psc.SupplementalGroups {
		s.Groups = append(s.Groups, int(g))
	}
	if psc.FSGroup != nil {
		s.Groups = append(s.Groups, int(*psc.FSGroup))
	}
	if must := or(sc.RunAsNonRoot, psc.RunAsNonRoot); must != nil && *must && s.UID == 0 {
		return errors.New("the container has runAsNonRoot and would run as root")
	}
	is := func(b *bool) bool { return b != nil && *b }
	s.Privileged = is(sc.Privileged)
	s.ReadOnly = is(sc.ReadOnlyRootFilesystem)
	s.NoNewPrivs = sc.AllowPrivilegeEscalation != nil && !*sc.AllowPrivilegeEscalation
	var err error
	s.Capabilities, err = capabilities(sc.Capabilities, s.Privileged)
	return err
}

func or[T any](a, b *T) *T {
	if a != nil {
		return a
	}
	return b
}

// environment gives the values of c's variables by name.
func environment(c corev1.Container, cfg Config, pod *corev1.Pod) (map[string]string, error) {
	if len(c.EnvFrom) > 0 {
		return nil, errors.New("envFrom cannot be represented")
	}
	env := map[string]string{}
	for _, e := range c.Env {
		if e.ValueFrom == nil {
			env[e.Name] = expand(e.Value, env)
			continue
		}
		if e.ValueFrom.FieldRef == nil {
			return nil, fmt.Errorf("env %s: only fieldRef can be represented", e.Name)
		}
		switch path := e.ValueFrom.FieldRef.FieldPath; path {
		case "status.podIP", "status.podIPs":
			var ips []string
			for _, ip := range cfg.PodIPs {
				ips = append(ips, ip.String())
			}
			if path == "status.podIP" && len(ips) > 1 {
				ips = ips[:1]
			}
			env[e.Name] = strings.Join(ips, ",")
		case "metadata.name":
			env[e.Name] = pod.Name
		case "metadata.namespace":
			env[e.Name] = pod.Namespace
		default:
			return nil, fmt.Errorf("env %s: fieldPath %s cannot be represented", e.Name, path)
		}
	}
	return env, nil
}

// expand replaces $(NAME) by the variable's value where there is one, and $$ by $, as the kubelet does.
func expand(s string, env map[string]string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '$' && i+1 < len(s) {
			if s[i+1] == '$' {
				b.WriteByte('$')
				i++
				continue
			}
			if end := strings.IndexByte(s[i:], ')'); s[i+1] == '(' && end > 0 {
				if v, ok := env[s[i+2:i+end]]; ok {
					b.WriteString(v)
					i += end
					continue
				}
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

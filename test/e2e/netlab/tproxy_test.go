package netlab

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// startWatcher runs the container that writes rules as mode tproxy has it: a native sidecar.
func startWatcher(t *testing.T, l *Lab, c corev1.Container, port uint16) {
	t.Helper()
	always := corev1.ContainerRestartPolicyAlways
	c.Args, c.RestartPolicy = []string{"-watch"}, &always
	c.StartupProbe = &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/readyz", Port: intstr.FromInt32(int32(port))}}, TimeoutSeconds: 2}
	_, err := l.Start(c)
	do(t, err, l.WaitReady(t.Context(), c, c.StartupProbe))
}

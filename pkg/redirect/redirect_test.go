package redirect

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"github.com/meshvirt/meshvirt/pkg/mesh"
	"github.com/meshvirt/meshvirt/test/corpus"
)

const cni = "pods/v1.9.0/masquerade-istio-ports/injected-1.31.0-rc.0-cni.yaml"

// Whichever way Istio gets its settings, it reads what it was told, and a second time there is nothing to tell.
func TestRerouteAndExclude(t *testing.T) {
	inCommand := func(p *corev1.Pod) {
		c := &p.Spec.InitContainers[Container(p)]
		c.Command, c.Args = slices.Concat(c.Command, c.Args), nil
	}
	for name, c := range map[string]struct {
		file   string
		change func(*corev1.Pod)
	}{
		"istio-init":             {corpus.Sidecar, func(*corev1.Pod) {}},
		"flags in the command":   {corpus.Sidecar, inCommand},
		"istio-cni":              {cni, func(*corev1.Pod) {}},
		"no annotations of ours": {corpus.Sidecar, func(p *corev1.Pod) { p.Annotations = nil }},
	} {
		t.Run(name, func(t *testing.T) {
			pod := corpus.Pod(t, c.file)
			c.change(pod)
			for what, tell := range map[string]func(*corev1.Pod, []string) ([]string, error){"reroute": Reroute, "exclude": Exclude} {
				if _, err := tell(pod, []string{"k6t-a", "k6t-b"}); err != nil {
					t.Fatal(err)
				}
				capture, err := mesh.ReadIstio(Input(pod, Container(pod)))
				if err != nil {
					t.Fatal(err)
				}
				for _, name := range []string{"k6t-a", "k6t-b"} {
					if r, x := slices.Contains(capture.RerouteInterfaces, name), slices.Contains(capture.ExcludeInterfaces, name); r != (what == "reroute") || x == r {
						t.Errorf("%s %s: rerouted %t, excluded %t", what, name, r, x)
					}
				}
				if again, err := tell(pod, []string{"k6t-a", "k6t-b"}); len(again) > 0 || err != nil {
					t.Errorf("%s again: %q (%v)", what, again, err)
				}
			}
			if _, err := RerouteNothing(pod); err != nil {
				t.Fatal(err)
			}
			if capture, err := mesh.ReadIstio(Input(pod, Container(pod))); err != nil || len(capture.RerouteInterfaces) > 0 {
				t.Errorf("rerouted %q (%v), want nothing", capture.RerouteInterfaces, err)
			}
		})
	}
}

// Releases that do not know an excluded interface are not told of one, by annotation or else.
func TestExcludeIsNotKnown(t *testing.T) {
	pod := corpus.Pod(t, corpus.Sidecar)
	pod.Spec.InitContainers[Container(pod)].Image = "docker.io/istio/proxyv2:1.10.0"
	if _, err := Exclude(pod, []string{"k6t-eth0"}); err != nil {
		t.Fatal(err)
	}
	if v, ok := pod.Annotations[mesh.AnnotationExcludeInterfaces]; ok {
		t.Errorf("%s is %q, want none", mesh.AnnotationExcludeInterfaces, v)
	}
	if in := Input(pod, Container(pod)); slices.ContainsFunc(in.Args, func(a string) bool { return strings.HasPrefix(a, "--istio-exclude-interfaces") }) {
		t.Errorf("args %q", in.Args)
	}
}

// Without Istio's container there are annotations to take away, and with one that cannot be read nothing.
func TestRerouteNothing(t *testing.T) {
	pod := corpus.Pod(t, corpus.Sidecar)
	pod.Spec.InitContainers = nil
	if changes, err := RerouteNothing(pod); err != nil || len(changes) != 2 || pod.Annotations[mesh.AnnotationRerouteInterfaces] != "" {
		t.Errorf("changes %q (%v), annotations %q", changes, err, pod.Annotations)
	}
	pod = corpus.Pod(t, corpus.Sidecar)
	pod.Spec.InitContainers[0].Args = []string{"istio-iptables", "-p"}
	before := pod.DeepCopy()
	for _, tell := range []func() ([]string, error){
		func() ([]string, error) { return RerouteNothing(pod) },
		func() ([]string, error) { return Reroute(pod, []string{"k6t-eth0"}) },
		func() ([]string, error) { return Exclude(pod, []string{"k6t-eth0"}) },
	} {
		if changes, err := tell(); err == nil || len(changes) > 0 {
			t.Errorf("changes %q, error %v; want an error", changes, err)
		}
		if diff := cmp.Diff(before, pod); diff != "" {
			t.Errorf("the pod changed (-before +after)\n%s", diff)
		}
	}
}

// Where istio-cni writes the rules, the environment is that of the proxy; else that of the container itself. What comes from elsewhere is not known.
func TestInputEnvironment(t *testing.T) {
	for file, want := range map[string]string{corpus.Sidecar: "istio-init", cni: "istio-proxy"} {
		pod := corpus.Pod(t, file)
		for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
			for i := range list {
				list[i].Env = []corev1.EnvVar{{Name: "WHOSE", Value: list[i].Name}, {Name: "NODE", ValueFrom: &corev1.EnvVarSource{}}}
			}
		}
		if diff := cmp.Diff(map[string]string{"WHOSE": want}, Input(pod, Container(pod)).Env); diff != "" {
			t.Errorf("%s (-want +got)\n%s", file, diff)
		}
	}
}

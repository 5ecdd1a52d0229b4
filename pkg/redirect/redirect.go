// Package redirect finds, reads and changes in a pod how Istio was told to redirect its traffic: the command line of an
// init container, and the annotations that istio-cni reads, and the injector if it is invoked again. What they say is package
// mesh's matter; what they should say, the caller's.
package redirect

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshvirt/meshvirt/pkg/cmdline"
	"github.com/meshvirt/meshvirt/pkg/mesh"
	"github.com/meshvirt/meshvirt/pkg/templates"
)

// Istio's containers.
const (
	initName       = "istio-init"       // sets the redirection up
	validationName = "istio-validation" // checks that istio-cni did
	proxyName      = "istio-proxy"
)

// Container gives the index of the init container that sets Istio's redirection up, or checks that
// istio-cni did; negative in a pod without one.
func Container(pod *corev1.Pod) int {
	return templates.Index(pod.Spec.InitContainers, initName, validationName)
}

// Input is where Istio's settings stand in a pod whose Container has the given index.
func Input(pod *corev1.Pod, container int) mesh.Input {
	c := &pod.Spec.InitContainers[container]
	in := mesh.Input{
		Args:        slices.Concat(c.Command, c.Args),
		Env:         environment(c),
		Annotations: pod.Annotations,
		Image:       c.Image,
		CNI:         c.Name == validationName,
	}
	if in.CNI {
		for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
			if i := templates.Index(list, proxyName); i >= 0 {
				in.Env = environment(&list[i])
			}
		}
	}
	return in
}

// environment is what c is given by value; the rest is known to the kubelet only.
func environment(c *corev1.Container) map[string]string {
	env := map[string]string{}
	for _, e := range c.Env {
		if e.ValueFrom == nil {
			env[e.Name] = e.Value
		}
	}
	return env
}

// Reroute has Istio take what comes in by the interfaces for the pod's outbound traffic. It changes the pod's
// annotations and its list of init containers in place, and gives a line for each change. An error is of a command
// line that cannot be read; the pod is then as it was.
func Reroute(pod *corev1.Pod, interfaces []string) ([]string, error) {
	e, err := begin(pod)
	if err != nil {
		return nil, err
	}
	for _, name := range interfaces {
		e.args.Reroute(name)
		e.annotate(mesh.RerouteInterface(pod.Annotations, name))
	}
	return e.end(), nil
}

// Exclude is the inverse of Reroute: Istio leaves the interfaces alone, in both directions.
func Exclude(pod *corev1.Pod, interfaces []string) ([]string, error) {
	e, err := begin(pod)
	if err != nil {
		return nil, err
	}
	for _, name := range interfaces {
		e.args.ExcludeInterface(name)
		change := mesh.ExcludeInterface(pod.Annotations, name)
		if !e.args.Knows(cmdline.FlagExcludeInterfaces) {
			delete(change.Set, mesh.AnnotationExcludeInterfaces)
		}
		e.annotate(change)
	}
	return e.end(), nil
}

// RerouteNothing is as Reroute, for no interface at all. It takes the annotations from a pod without Container too.
func RerouteNothing(pod *corev1.Pod) ([]string, error) {
	e, err := begin(pod)
	if err != nil {
		return nil, err
	}
	e.args.RerouteNothing()
	e.annotate(mesh.RerouteNothing(pod.Annotations))
	return e.end(), nil
}

// edit is a change under way.
type edit struct {
	pod       *corev1.Pod
	container *corev1.Container // nil in a pod without one
	flags     *[]string         // the list of the container that holds them
	args      cmdline.Args
	changes   []string
}

func begin(pod *corev1.Pod) (edit, error) {
	e := edit{pod: pod}
	i := Container(pod)
	if i < 0 {
		return e, nil
	}
	e.container = &pod.Spec.InitContainers[i]
	e.flags = flags(e.container)
	args, err := cmdline.Parse(*e.flags)
	if err != nil {
		return e, err
	}
	e.args = args.Within(Input(pod, i).Program())
	return e, nil
}

// flags is the list of c that holds its flags: its command or its arguments.
func flags(c *corev1.Container) *[]string {
	if slices.ContainsFunc(c.Command, func(e string) bool { return strings.HasPrefix(e, "-") }) {
		return &c.Command
	}
	return &c.Args
}

func (e *edit) annotate(change mesh.AnnotationChange) {
	for _, k := range change.Remove {
		delete(e.pod.Annotations, k)
		e.changed("annotation %s: removed", k)
	}
	for _, k := range slices.Sorted(maps.Keys(change.Set)) {
		metav1.SetMetaDataAnnotation(&e.pod.ObjectMeta, k, change.Set[k])
		e.changed("annotation %s: %s", k, change.Set[k])
	}
}

func (e *edit) changed(format string, args ...any) {
	e.changes = append(e.changes, fmt.Sprintf(format, args...))
}

// end puts the arguments into the container, and gives all changes.
func (e *edit) end() []string {
	if e.container == nil {
		return e.changes
	}
	if after := e.args.Strings(); !slices.Equal(after, *e.flags) {
		*e.flags = after
		e.changed("init container %s: args %s", e.container.Name, strings.Join(after, " "))
	}
	return e.changes
}

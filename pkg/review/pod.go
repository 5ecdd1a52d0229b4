package review

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/meshvirt/meshvirt/pkg/templates"
)

// The types below are what the steps of pkg/mutate look at of a pod, and no more: everything else is
// skipped, which is most of the time that decoding a pod takes. A step that looks at another field
// needs it here (TestDecodedPodIsAdaptedAlike). Whatever is not here stays byte for byte as it came:
// patch.Between never touches it.
type podParts struct {
	Metadata struct {
		Name            string                  `json:"name"`
		GenerateName    string                  `json:"generateName"`
		Namespace       string                  `json:"namespace"`
		Labels          map[string]string       `json:"labels"`
		Annotations     map[string]string       `json:"annotations"`
		OwnerReferences []metav1.OwnerReference `json:"ownerReferences"`
	} `json:"metadata"`
	Spec struct {
		InitContainers                []containerParts `json:"initContainers"`
		Containers                    []containerParts `json:"containers"`
		Volumes                       []volumeParts    `json:"volumes"`
		HostNetwork                   bool             `json:"hostNetwork"`
		TerminationGracePeriodSeconds *int64           `json:"terminationGracePeriodSeconds"`
		AutomountServiceAccountToken  *bool            `json:"automountServiceAccountToken"`
	} `json:"spec"`
}

type containerParts struct {
	Name          string                         `json:"name"`
	Image         string                         `json:"image"`
	Command       []string                       `json:"command"`
	Args          []string                       `json:"args"`
	Env           []variable                     `json:"env"`
	Ports         []corev1.ContainerPort         `json:"ports"`
	RestartPolicy *corev1.ContainerRestartPolicy `json:"restartPolicy"`
	Resources     struct {
		Requests amounts `json:"requests"`
		Limits   amounts `json:"limits"`
	} `json:"resources"`
}

type variable struct {
	Name      string    `json:"name"`
	Value     string    `json:"value"`
	ValueFrom *struct{} `json:"valueFrom"` // from wherever
}

// amounts are quantities as they came: parsing them takes as long as all else of a container.
type amounts struct {
	CPU    jsontext.Value `json:"cpu"`
	Memory jsontext.Value `json:"memory"`
}

type volumeParts struct {
	Name  string    `json:"name"`
	Image *struct{} `json:"image"`
	// Others are sources beside an image, of which there should be none.
	Others jsontext.Value `json:",embed"`
}

// object is the pod of a review.
type object struct {
	podParts
	given bool
	err   error // why it is no pod
}

// UnmarshalJSONFrom implements json.UnmarshalerFrom.
func (o *object) UnmarshalJSONFrom(d *jsontext.Decoder) error {
	if d.PeekKind() == jsontext.KindNull {
		return d.SkipValue()
	}
	o.given = true
	return json.UnmarshalDecode(d, &o.podParts)
}

// skipObject is for reviews of what is no pod: whether that matters is known when the rest is read.
var skipObject = json.WithUnmarshalers(json.UnmarshalFromFunc(func(d *jsontext.Decoder, o *object) error {
	o.given = true
	return d.SkipValue()
}))

// Pod makes the pod of a request, as far as steps look at it. Unlike encoding/json it has compared names exactly and refused
// one that is there twice, as the API server does in strict mode.
func (r *Request) Pod() (*corev1.Pod, error) {
	if !r.Object.given {
		return nil, errors.New("request.object is empty, want a pod")
	}
	if r.Object.err != nil {
		return nil, fmt.Errorf("request.object is no pod: %w", explain(r.Object.err))
	}
	pod, err := r.Object.pod()
	if err == nil && slices.ContainsFunc(pod.Spec.InitContainers, func(c corev1.Container) bool { return templates.Ours(c.Name) }) {
		err = decodeOwn(r.review, pod)
	}
	if err != nil {
		return nil, fmt.Errorf("request.object is no pod: %w", explain(err))
	}
	return pod, nil
}

func (p *podParts) pod() (*corev1.Pod, error) {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: p.Metadata.Name, GenerateName: p.Metadata.GenerateName, Namespace: p.Metadata.Namespace,
			Labels: p.Metadata.Labels, Annotations: p.Metadata.Annotations, OwnerReferences: p.Metadata.OwnerReferences,
		},
		Spec: corev1.PodSpec{
			InitContainers: containers(p.Spec.InitContainers), Containers: containers(p.Spec.Containers),
			HostNetwork: p.Spec.HostNetwork, TerminationGracePeriodSeconds: p.Spec.TerminationGracePeriodSeconds,
			AutomountServiceAccountToken: p.Spec.AutomountServiceAccountToken,
		},
	}
	// A volume is large, and few are looked at: ours, spoilt ones, and the first for whether there are any.
	for i, v := range p.Spec.Volumes {
		mixed := v.Image != nil && v.Others != nil
		if i > 0 && !mixed && v.Name != templates.NoTokenName {
			continue
		}
		named := corev1.Volume{Name: v.Name}
		if mixed { // whichever the other source is, it may not be
			named.VolumeSource = corev1.VolumeSource{Image: &corev1.ImageVolumeSource{}, EmptyDir: &corev1.EmptyDirVolumeSource{}}
		}
		pod.Spec.Volumes = append(pod.Spec.Volumes, named)
	}
	// Amounts answer one question: is the pod Guaranteed? With a container that is not limited it is not.
	for _, list := range [][]containerParts{p.Spec.Containers, p.Spec.InitContainers} {
		if slices.ContainsFunc(list, func(c containerParts) bool { return !templates.Ours(c.Name) && !c.Resources.Limits.complete() }) {
			return pod, nil
		}
	}
	return pod, errors.Join(
		setResources("request.object.spec.containers", pod.Spec.Containers, p.Spec.Containers),
		setResources("request.object.spec.initContainers", pod.Spec.InitContainers, p.Spec.InitContainers))
}

func containers(parts []containerParts) []corev1.Container {
	if len(parts) == 0 {
		return nil
	}
	list := make([]corev1.Container, len(parts))
	for i := range parts {
		from, to := &parts[i], &list[i]
		to.Name, to.Image, to.Command, to.Args, to.Ports, to.RestartPolicy = from.Name, from.Image, from.Command, from.Args, from.Ports, from.RestartPolicy
		if len(from.Env) > 0 {
			to.Env = make([]corev1.EnvVar, len(from.Env))
		}
		for j, v := range from.Env {
			if to.Env[j].Name, to.Env[j].Value = v.Name, v.Value; v.ValueFrom != nil {
				to.Env[j].ValueFrom = &corev1.EnvVarSource{}
			}
		}
	}
	return list
}

func setResources(path string, list []corev1.Container, parts []containerParts) error {
	for i := range list {
		r := parts[i].Resources
		requests, err := r.Requests.list()
		if err != nil {
			return fmt.Errorf("%s[%d].resources.requests: %w", path, i, err)
		}
		limits, err := r.Limits.list()
		if err != nil {
			return fmt.Errorf("%s[%d].resources.limits: %w", path, i, err)
		}
		list[i].Resources = corev1.ResourceRequirements{Requests: requests, Limits: limits}
	}
	return nil
}

func (a amounts) complete() bool { return a.CPU != nil && a.Memory != nil }

func (a amounts) list() (corev1.ResourceList, error) {
	list := corev1.ResourceList{}
	for name, raw := range map[corev1.ResourceName]jsontext.Value{corev1.ResourceCPU: a.CPU, corev1.ResourceMemory: a.Memory} {
		if raw == nil {
			continue
		}
		var q resource.Quantity
		if err := q.UnmarshalJSON(raw); err != nil {
			return nil, fmt.Errorf("%s is %s: %w", name, raw, err)
		}
		list[name] = q
	}
	return list, nil
}

// decodeOwn adds what else our own containers have, in a pod that was adapted before: they are compared
// with what they should be. It reads the review once more.
func decodeOwn(review []byte, pod *corev1.Pod) error {
	var in struct {
		Request struct {
			Object struct {
				Spec struct {
					InitContainers []ownContainer `json:"initContainers"`
				} `json:"spec"`
			} `json:"object"`
		} `json:"request"`
	}
	if err := json.Unmarshal(review, &in); err != nil {
		return err
	}
	for i, own := range in.Request.Object.Spec.InitContainers {
		if templates.Ours(pod.Spec.InitContainers[i].Name) {
			pod.Spec.InitContainers[i] = corev1.Container(own)
		}
	}
	return nil
}

// ownContainer is read if it is one of ours.
type ownContainer corev1.Container

// UnmarshalJSONFrom implements json.UnmarshalerFrom.
func (c *ownContainer) UnmarshalJSONFrom(d *jsontext.Decoder) error {
	raw, err := d.ReadValue()
	if err != nil {
		return err
	}
	var name struct {
		Name string `json:"name"`
	}
	if err := json.Unmarshal(raw, &name); err != nil || !templates.Ours(name.Name) {
		return err
	}
	return json.Unmarshal(raw, (*corev1.Container)(c))
}

// explain says in words for users what a field of the object is, and should be.
func explain(err error) error {
	semantic := (*json.SemanticError)(nil)
	if !errors.As(err, &semantic) || semantic.GoType == nil || errors.As(semantic.Err, new(*json.SemanticError)) {
		return err
	}
	got, want := given[semantic.JSONKind], kinds[semantic.GoType.Kind()]
	if got == "" || want == "" {
		return err
	}
	var path *field.Path
	for name := range semantic.JSONPointer.Tokens() {
		if i, err := strconv.Atoi(name); err == nil && path != nil {
			path = path.Index(i)
		} else {
			path = path.Child(name)
		}
	}
	if semantic.JSONKind == jsontext.KindNumber && semantic.JSONValue != nil {
		got = string(semantic.JSONValue)
	}
	return fmt.Errorf("%s is %s, want %s", path, got, want)
}

// given are names for what a field has, kinds for what it may have.
var given = map[jsontext.Kind]string{
	jsontext.KindString: "a string", jsontext.KindNumber: "a number", jsontext.KindBeginArray: "an array",
	jsontext.KindBeginObject: "an object", jsontext.KindTrue: "true", jsontext.KindFalse: "false",
}

var kinds = map[reflect.Kind]string{
	reflect.Bool: "true or false", reflect.String: "a string", reflect.Slice: "an array",
	reflect.Struct: "an object", reflect.Map: "an object", reflect.Pointer: "an object",
	reflect.Int32: "an integer of 32 bits", reflect.Int64: "an integer of 64 bits",
}

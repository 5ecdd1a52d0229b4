package check

import (
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/meshvirt/meshvirt/pkg/annotations"
	"github.com/meshvirt/meshvirt/pkg/decision"
	"github.com/meshvirt/meshvirt/pkg/inventory"
	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/templates"
)

// curable are the reasons for which a pod in a mesh is left alone though nobody asked for it.
var curable = []decision.Reason{
	decision.NoInterception, decision.InterceptionTPROXY, decision.NoVirtualInterface,
	decision.MeshUnsupported, decision.AmbientUnsupported, decision.BindingUnsupported,
}

func leftAlone(v *view) (all []Finding) {
	for _, l := range v.launchers {
		if l.undo != nil || l.status.Mode != "" || len(l.errs) > 0 {
			continue
		}
		switch r := l.report; {
		case r.Mode != plan.Off && len(v.ours) == 0 && !v.unknown(inventory.Configurations), !v.called(l.pod.Namespace):
			// Said once, of the installation or of the namespace.
		case r.Mode != plan.Off:
			all = append(all, finding(NotAdapted, l.object, fmt.Sprintf("it is in a mesh (%s), but not adapted: it started before MeshVirt, or while the webhook did not answer. The guest's traffic is as the mesh alone leaves it", r.Mesh), l.restart()))
		case slices.Contains(curable, r.Reason):
			message := fmt.Sprintf("it is in a mesh (%s) and left alone: %s. %s", r.Mesh, r.Reason, decision.ReasonTexts[r.Reason])
			if len(r.Warnings) > 0 {
				message += " " + strings.Join(r.Warnings, "; ")
			}
			all = append(all, finding(LeftAlone, l.object, message, decision.Advice(r.Reason)))
		case r.Reason == decision.NoMesh && l.mode() != "":
			all = append(all, finding(NotInMesh, l.object, fmt.Sprintf("mode %s is asked for, and no mesh has injected its proxy into the pod", l.mode()),
				"Let the mesh inject (for Istio: label istio-injection=enabled on the namespace, or sidecar.istio.io/inject: \"true\" as label in the template), and restart; or remove "+annotations.Mode+"."))
		}
	}
	return all
}

// mode is the one that the user has asked for by name.
func (l launcher) mode() string {
	if l.vmi != nil {
		return l.vmi.Annotations[annotations.Mode]
	}
	return l.pod.Annotations[annotations.Mode]
}

// restart says how the pod gets another one.
func (l launcher) restart() string {
	if l.vmi == nil {
		return "Live migrate or restart the virtual machine."
	}
	return fmt.Sprintf("virtctl migrate -n %s %s, or virtctl restart.", l.vmi.Namespace, l.vmi.Name)
}

// again says what admission would say of the pods now. Releases learn of defects, and settings change.
func again(v *view) (all []Finding) {
	for _, l := range v.launchers {
		if l.undo != nil {
			all = append(all, finding(UndoUnreadable, l.object, l.undo.Error(), l.restart()))
			continue
		}
		if l.status.Version != "" && v.release != "" && l.status.Version != v.release {
			all = append(all, finding(OtherRelease, l.object, fmt.Sprintf("it was adapted by release %s, and %s is installed", l.status.Version, v.release), l.restart()))
		}
		if l.vmi != nil {
			if _, _, errs := annotations.Parse(l.vmi.Annotations, nil); len(errs) > 0 {
				continue // told of the VMI
			}
		}
		for _, err := range l.errs {
			all = append(all, finding(NextRefused, l.object, "the next pod like this one will be refused: "+err.Error(), "Correct it before the virtual machine restarts or migrates."))
		}
		if l.status.Mode == "" || l.report.Mode == plan.Off {
			continue
		}
		told := map[string]bool{}
		for _, i := range l.report.Issues {
			told[i.What], told[i.Fix] = true, true
			all = append(all, finding(KnownIssue, l.object, i.What, i.Fix))
		}
		if l.vmi != nil { // unknown annotations are told of the VMI
			_, unknown, _ := annotations.Parse(l.vmi.Annotations, nil)
			for _, w := range unknown {
				told[w] = true
			}
		}
		for _, w := range l.report.Warnings {
			if !told[w] {
				all = append(all, finding(Doubtful, l.object, w, fmt.Sprintf("kubectl meshvirt explain -n %s %s shows the whole.", l.pod.Namespace, l.pod.Name)))
			}
		}
	}
	return all
}

// settled is how long a container may take to get ready after its start.
const settled = time.Minute

func containers(v *view) (all []Finding) {
	for _, l := range v.launchers {
		for _, c := range l.pod.Status.InitContainerStatuses {
			if !templates.Ours(c.Name) {
				continue
			}
			if code, message := v.fault(c); code != "" {
				fix := fmt.Sprintf("kubectl logs -n %s %s -c %s has more; if its image %s cannot be pulled, see docs/install.md.", l.pod.Namespace, l.pod.Name, c.Name, c.Image)
				all = append(all, finding(code, l.object, message, fix))
			}
		}
	}
	return all
}

// fault gives an empty code for a container that is as it should be.
func (v *view) fault(c corev1.ContainerStatus) (Code, string) {
	switch w, run, end := c.State.Waiting, c.State.Running, c.State.Terminated; {
	case w != nil && w.Reason != "" && w.Reason != "PodInitializing" && w.Reason != "ContainerCreating":
		return ContainerFailed, fmt.Sprintf("container %s does not start, and so the virtual machine: %s %s%s", c.Name, w.Reason, w.Message, lastWords(c.LastTerminationState.Terminated))
	case end != nil && end.ExitCode != 0:
		return ContainerFailed, fmt.Sprintf("container %s has failed%s", c.Name, lastWords(end))
	case run == nil:
		return "", ""
	case !c.Ready && v.Now.Sub(run.StartedAt.Time) > settled:
		return ContainerNotReady, fmt.Sprintf("container %s runs since %s and is not ready%s", c.Name, run.StartedAt.UTC().Format(time.RFC3339), lastWords(c.LastTerminationState.Terminated))
	case c.RestartCount > 0 && c.LastTerminationState.Terminated != nil:
		return ContainerRestarted, fmt.Sprintf("container %s was started again, %d times by now%s", c.Name, c.RestartCount, lastWords(c.LastTerminationState.Terminated))
	}
	return "", ""
}

func lastWords(t *corev1.ContainerStateTerminated) string {
	if t == nil {
		return ""
	}
	words := fmt.Sprintf(": it ended with exit code %d (%s)", t.ExitCode, t.Reason)
	if message := strings.TrimSpace(t.Message); message != "" {
		words += ", saying: " + message
	}
	return words
}

package mutate

import (
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/meshvirt/meshvirt/pkg/decision"
	"github.com/meshvirt/meshvirt/pkg/plan"
)

// chooseMode puts together what the decision is made by.
func chooseMode(_ *corev1.Pod, s *state) decision.Reason {
	if s.facts.VMI != nil {
		s.binding = s.facts.VMI.Binding
	}
	choice, err := decision.Choose(decision.Case{
		Binding:          s.binding,
		Mesh:             s.report.Mesh,
		Interception:     s.capture.Interception,
		CannotExclude:    s.capture.CannotExclude,
		Given:            len(s.settings.Interfaces) > 0,
		Rerouted:         len(s.capture.RerouteInterfaces) > 0,
		Found:            len(s.previous.Interfaces) > 0,
		WasProcess:       s.previous.Mode == plan.Process && s.previous.Reason == decision.ProcessBinding,
		NoNativeSidecars: noNativeSidecars(s),
		Asked:            s.settings.Mode,
		Default:          s.cfg.DefaultMode,
	})
	if err != nil {
		return s.invalid(err)
	}
	s.report.Warnings = append(s.report.Warnings, choice.Warnings...)
	if choice.Mode == plan.Off {
		return choice.Reason
	}
	s.report.Mode, s.report.Reason = choice.Mode, choice.Reason
	return ""
}

// noNativeSidecars reports whether a native sidecar of ours would be none. Where the mesh's is one in
// the pod already, the API server knows them, whatever its release.
func noNativeSidecars(s *state) bool {
	return s.facts.NoNativeSidecars && !slices.ContainsFunc(s.before.Spec.InitContainers, func(c corev1.Container) bool {
		return c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
	})
}

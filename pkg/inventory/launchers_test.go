package inventory

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Each line is in the way of the one above it.
const launchers = `
kind: List
items:
- {kind: Pod, metadata: {name: source, creationTimestamp: "2026-01-01T00:00:00Z", ownerReferences: [OWNER]}, status: {phase: Running}}
- {kind: Pod, metadata: {name: target, creationTimestamp: "2026-01-01T00:02:00Z", ownerReferences: [OWNER]}, status: {phase: Pending}}
- {kind: Pod, metadata: {name: same-second, creationTimestamp: "2026-01-01T00:02:00Z", ownerReferences: [OWNER]}, status: {phase: Pending}}
- {kind: Pod, metadata: {name: ending, creationTimestamp: "2026-01-01T00:03:00Z", deletionTimestamp: "2026-01-01T00:03:30Z", ownerReferences: [OWNER]}, status: {phase: Running}}
- {kind: Pod, metadata: {name: ended, creationTimestamp: "2026-01-01T00:04:00Z", ownerReferences: [OWNER]}, status: {phase: Succeeded}}
- {kind: Pod, metadata: {name: failed, creationTimestamp: "2026-01-01T00:04:00Z", ownerReferences: [OWNER]}, status: {phase: Failed}}
- {kind: Pod, metadata: {name: of-the-one-before, creationTimestamp: "2026-01-01T00:04:00Z", ownerReferences: [{apiVersion: kubevirt.io/v1, kind: VirtualMachineInstance, name: web, uid: "0", controller: true}]}}
- {kind: Pod, metadata: {name: not-controlled, ownerReferences: [{apiVersion: kubevirt.io/v1, kind: VirtualMachineInstance, name: web, uid: "1"}]}}
- {kind: Pod, metadata: {name: of-another-group, ownerReferences: [{apiVersion: example.com/v1, kind: VirtualMachineInstance, name: web, uid: "1", controller: true}]}}
- {kind: Pod, metadata: {name: of-another-kind, ownerReferences: [{apiVersion: kubevirt.io/v1, kind: VirtualMachine, name: web, uid: "1", controller: true}]}}
- {kind: Pod, metadata: {name: of-nobody}}
`

func TestLaunchers(t *testing.T) {
	c := &Cluster{}
	owner := "{apiVersion: kubevirt.io/v1alpha3, kind: VirtualMachineInstance, name: web, uid: \"1\", controller: true}"
	if err := addYAML(c, strings.ReplaceAll(launchers, "OWNER", owner)); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, pod := range c.Launchers("1") {
		got = append(got, pod.Name)
	}
	if diff := cmp.Diff([]string{"same-second", "target", "source", "ending"}, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

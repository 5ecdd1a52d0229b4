package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/meshvirt/meshvirt/pkg/plan"
)

// writeJSON writes the cells, an object each.
func writeJSON(name string, rows []Row) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	b, err := json.MarshalIndent(rows, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(name, append(b, '\n'), 0o644)
}

// verdict says how many cells are as wanted, and fails if not all are.
func verdict(rows []Row, out io.Writer) error {
	ok := 0
	for _, r := range rows {
		if r.OK {
			ok++
		}
	}
	fmt.Fprintf(out, "%d cells, %d as wanted\n", len(rows), ok)
	if ok < len(rows) {
		return fmt.Errorf("%d of %d cells are not as wanted", len(rows)-ok, len(rows))
	}
	return nil
}

// A line of a table: cells that have the same flow and the same want for the same reason.
type line struct {
	flow, want, why string
	families        []string
	cells, ok       int
	alone           map[string]int // what Istio alone gives, and how often
}

// groups is the order of flows in the tables, by how their names begin.
var groups = []string{"egress", "ingress", "tunnel", "probe", "metrics", "udp", "dns", "icmp", "pod", "hairpin", "migration", "attack"}

// linesOf makes the lines of a mode's table. They do not depend on the order of the rows.
func linesOf(rows []Row, mode plan.Mode) []*line {
	var lines []*line
	for _, r := range rows {
		if r.Mode != string(mode) {
			continue
		}
		if mode == plan.Off {
			r.Want = same // what that is stands beside
		}
		i := slices.IndexFunc(lines, func(l *line) bool { return l.flow == r.Flow && l.want == r.Want && l.why == r.Why })
		if i < 0 {
			i = len(lines)
			lines = append(lines, &line{flow: r.Flow, want: r.Want, why: r.Why, alone: map[string]int{}})
		}
		l := lines[i]
		if !slices.Contains(l.families, r.Family) {
			l.families = append(l.families, r.Family)
		}
		l.cells++
		l.alone[r.Alone]++
		if r.OK {
			l.ok++
		}
	}
	for _, l := range lines {
		slices.Sort(l.families)
	}
	group := func(l *line) int {
		return slices.IndexFunc(groups, func(g string) bool { return strings.HasPrefix(l.flow, g) })
	}
	slices.SortFunc(lines, func(a, b *line) int {
		return cmp.Or(group(a)-group(b), strings.Compare(a.flow, b.flow), strings.Compare(a.families[0], b.families[0]),
			strings.Compare(a.why, b.why), strings.Compare(a.want, b.want))
	})
	return lines
}

// promise is the part of a line that the code alone decides.
func (l *line) promise() string {
	return fmt.Sprintf("| %s | %s | %s | %s |", l.flow, strings.ReplaceAll(strings.Join(l.families, ", "), "ip", "IP"), l.want, l.why)
}

func (l *line) String() string {
	kept := fmt.Sprint(l.ok)
	if l.ok < l.cells {
		kept = fmt.Sprintf("**%d** of %d", l.ok, l.cells)
	}
	return fmt.Sprintf("%s %s | %s |", l.promise(), kept, l.withoutUs())
}

// withoutUs is what Istio alone gives, the most frequent first.
func (l *line) withoutUs() string {
	var outcomes []string
	for o := range l.alone {
		outcomes = append(outcomes, o)
	}
	slices.SortFunc(outcomes, func(a, b string) int { return cmp.Or(l.alone[b]-l.alone[a], strings.Compare(a, b)) })
	if len(outcomes) == 1 {
		return outcomes[0]
	}
	for i, o := range outcomes {
		outcomes[i] = fmt.Sprintf("%s %d", o, l.alone[o])
	}
	return strings.Join(outcomes, ", ")
}

const docHead = `# Conformance

Written by ` + "`make conformance`" + `, which runs virt-launcher pods in every mode and sends packets, and lists each cell in
build/conformance.json; ` + "`make conformance CORPUS=DIR`" + ` does so with other recordings ([how](../test/e2e/conformance/README.md)).

A line stands for all pods in which a flow is wanted the same for the same reason. "Cells" is how many were sent and went so (and, if
not all did, of how many); "Istio alone" is what became of the same flows in the same pods without MeshVirt, with the number
of pods where that differs from pod to pod. Attempts of the guest on the pod begin with ` + "`attack`" + `; a flow that says "by istio"
is excluded by istio-init's own arguments, the other exclusions are MeshVirt's annotations.
`

// writeDoc writes a table for each mode.
func writeDoc(name string, rows []Row) error {
	var b strings.Builder
	b.WriteString(docHead)
	fmt.Fprintf(&b, "\n%s\n", extent(rows))
	for _, mode := range plan.Modes {
		lines := linesOf(rows, mode)
		if len(lines) == 0 {
			continue
		}
		fmt.Fprintf(&b, "\n## Mode %s\n\n| flow | family | wanted | because | cells | Istio alone |\n|---|---|---|---|---|---|\n", mode)
		for _, l := range lines {
			fmt.Fprintln(&b, l)
		}
	}
	return os.WriteFile(name, []byte(b.String()), 0o644)
}

// extent tells what the rows are of.
func extent(rows []Row) string {
	values := func(of func(Row) string) []string {
		var all []string
		for _, r := range rows {
			if v := of(r); v != "" && !slices.Contains(all, v) {
				all = append(all, v)
			}
		}
		slices.Sort(all)
		return all
	}
	list := func(name string, of func(Row) string) string {
		return fmt.Sprintf("* %s: %s\n", name, strings.Join(values(of), ", "))
	}
	ok := 0
	guests := map[string]int{}
	for _, r := range rows {
		guests[r.Guest]++
		if r.OK {
			ok++
		}
	}
	s := fmt.Sprintf("%d cells were sent, %d went as wanted.\n\n", len(rows), ok)
	s += list("bindings", func(r Row) string { return r.Binding })
	for _, b := range bindings {
		if b.absence != "" {
			s = strings.TrimSuffix(s, "\n") + fmt.Sprintf("; not %s (%s)\n", b.name, b.absence)
		}
	}
	s = strings.TrimSuffix(s, "\n") + fmt.Sprintf("; not %s\n", noNative)
	s += list("meshes", func(r Row) string { return r.Mesh + " " + r.Version })
	s += list("backends of their rules", func(r Row) string { return r.Backend })
	s += list("KubeVirt's rules", func(r Row) string { return r.KubeVirt })
	s += list("what Istio was told", func(r Row) string { return r.Case })
	var kinds []string
	for _, g := range []string{machineGuest, namespaceGuest, processGuest} {
		if guests[g] > 0 {
			kinds = append(kinds, fmt.Sprintf("a %s for %d cells", g, guests[g]))
		}
	}
	return s + "* guests: " + strings.Join(kinds, ", ")
}

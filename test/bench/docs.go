package main

import (
	"fmt"
	"os"
	"slices"
	"strings"
)

// rewrite replaces in a page what stands between the lines "<!-- bench:NAME -->" and "<!-- bench:end -->"
// by the table of each name. Names that are not in the page, or not in tables, are left alone.
func rewrite(file string, tables map[string]string) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	text := string(b)
	for name, table := range tables {
		before, rest, found := strings.Cut(text, "<!-- bench:"+name+" -->\n")
		if !found {
			continue
		}
		_, after, found := strings.Cut(rest, "<!-- bench:end -->\n")
		if !found {
			return fmt.Errorf("%s: bench:%s has no end", file, name)
		}
		text = before + "<!-- bench:" + name + " -->\n" + table + "<!-- bench:end -->\n" + after
	}
	return os.WriteFile(file, []byte(text), 0o644)
}

// counts are units whose figures mean something beyond the machine: they are shown, ours to the peer's.
// Of all others the page has ratios only.
var counts = []string{"bytes", "fds", "connections", "times"}

// tables are the data path's results as Markdown: one table for each section (the first part of a result's
// name) by row and column, and one of all goals.
func tables(results []Result) (map[string]string, error) {
	type table struct {
		rows, columns []string
		cells         map[[2]string]string
	}
	sections := map[string]*table{}
	goals := "| goal | wanted | measured | |\n|---|---|---|---|\n"
	for _, r := range results {
		head, column, _ := strings.Cut(r.Name, ": ")
		section, row, ok := strings.Cut(head, ", ")
		if !ok || !slices.Contains(allSections, section) {
			continue // of another suite
		}
		t := sections[section]
		if t == nil {
			t = &table{cells: map[[2]string]string{}}
			sections[section] = t
		}
		if !slices.Contains(t.rows, row) {
			t.rows = append(t.rows, row)
		}
		if !slices.Contains(t.columns, column) {
			t.columns = append(t.columns, column)
		}
		t.cells[[2]string{row, column}] = fmt.Sprintf("%.2f", r.Ratio)
		if slices.Contains(counts, r.Unit) {
			t.cells[[2]string{row, column}] = fmt.Sprintf("%.4g to %.4g", r.Ours, r.Peer)
		}
		verdict, err := r.verdict()
		if err != nil {
			return nil, err
		}
		if verdict == "" {
			continue
		}
		measured := fmt.Sprintf("%.2f times %s", r.Ratio, r.PeerName)
		wanted, ours := strings.CutPrefix(r.Goal, "ours ")
		if ours {
			measured = fmt.Sprintf("%.4g %s", r.Ours, r.Unit)
		}
		goals += fmt.Sprintf("| %s | %s | %s | %s |\n", r.Name, wanted, measured, verdict)
	}
	out := map[string]string{"goals": goals}
	for section, t := range sections {
		var b strings.Builder
		fmt.Fprintf(&b, "| | %s |\n|---%s|\n", strings.Join(t.columns, " | "), strings.Repeat("|---", len(t.columns)))
		for _, row := range t.rows {
			fmt.Fprintf(&b, "| %s |", row)
			for _, column := range t.columns {
				fmt.Fprintf(&b, " %s |", t.cells[[2]string{row, column}])
			}
			b.WriteString("\n")
		}
		out[section] = b.String()
	}
	return out, nil
}

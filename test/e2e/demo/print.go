package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/test/e2e/netlab"
)

// Columns of the output, which is for terminals of 100.
const (
	width      = 100
	stepWidth  = 66
	labelWidth = 37
	nameWidth  = 26
	cellWidth  = 18
)

// printer writes for people: plain text, with colour on a terminal only.
type printer struct {
	out    io.Writer
	colour bool
	begin  time.Time
}

func newPrinter(out io.Writer) *printer {
	p := &printer{out: out, begin: time.Now()}
	if f, ok := out.(*os.File); ok && os.Getenv("NO_COLOR") == "" {
		info, err := f.Stat()
		p.colour = err == nil && info.Mode()&os.ModeCharDevice != 0
	}
	return p
}

func (p *printer) line(format string, args ...any) { fmt.Fprintf(p.out, format+"\n", args...) }

func (p *printer) paint(code, s string) string {
	if !p.colour {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}

func (p *printer) good(s string) string { return p.paint("32", s) }
func (p *printer) bad(s string) string  { return p.paint("31", s) }

func (p *printer) heading(format string, args ...any) {
	p.line("%s", p.paint("1", fmt.Sprintf(format, args...)))
}

// step is something that takes a while.
type step struct {
	name string
	do   func() error
}

// steps does them in order, a line each: when it began, what it is, and how long it took.
func (p *printer) steps(steps []step) error {
	for _, s := range steps {
		start := time.Now()
		fmt.Fprintf(p.out, "  [%5.1fs] %s ", start.Sub(p.begin).Seconds(), s.name)
		if err := s.do(); err != nil {
			p.line("%s", p.bad("failed"))
			return err
		}
		p.line("%s %.1fs", strings.Repeat(".", max(3, stepWidth-len(s.name))), time.Since(start).Seconds())
	}
	p.line("")
	return nil
}

// flow prints a flow's verdict, name and hops.
func (p *printer) flow(e expectation, r netlab.Result) {
	verdict := p.good("ok    ")
	if !met(e.want, r) {
		verdict = p.bad("BROKEN")
	}
	p.labelled(fmt.Sprintf("  %s  %-*s ", verdict, nameWidth, e.name), wrap(r.Hops, ending(r), width-labelWidth))
}

// labelled prints lines to the right of a label.
func (p *printer) labelled(label string, lines []string) {
	for i, text := range lines {
		if i > 0 {
			label = ""
		}
		p.line("%-*s%s", labelWidth, label, text)
	}
}

// ending is what the hops do not tell.
func ending(r netlab.Result) string {
	switch {
	case r.Answer != "":
		return ": " + r.Answer
	case strings.HasPrefix(r.Flow.Network, "raw-"):
		return ": no answer"
	case r.Err != nil:
		// Before the cause stand the operation and the addresses, which the hops tell better.
		text := r.Err.Error()
		return ": " + text[strings.LastIndex(": "+text, ": "):]
	}
	return ""
}

// wrap joins hops by arrows into lines of at most that many columns, and ends with end, which may
// make the last line longer.
func wrap(hops []string, end string, columns int) []string {
	lines := []string{""}
	for i, hop := range hops {
		if i < len(hops)-1 {
			hop += " ->"
		} else {
			hop += end
		}
		last := &lines[len(lines)-1]
		switch {
		case *last == "":
			*last = hop
		case utf8.RuneCountInString(*last)+1+utf8.RuneCountInString(hop) <= columns:
			*last += " " + hop
		default:
			lines = append(lines, hop)
		}
	}
	return lines
}

// summary prints the table of flows and modes.
func (p *printer) summary(outcomes map[plan.Mode][]netlab.Result) {
	p.heading("Summary")
	head := fmt.Sprintf("  %-*s %-*s", nameWidth, "flow", cellWidth, "wanted")
	for _, mode := range modes {
		head += fmt.Sprintf("%-*s", cellWidth, mode)
	}
	p.line("%s", strings.TrimRight(head, " "))
	kept := map[plan.Mode]int{}
	for i, e := range expectations {
		row := fmt.Sprintf("  %-*s %-*s", nameWidth, e.name, cellWidth, e.want)
		for _, mode := range modes {
			if r := outcomes[mode][i]; met(e.want, r) {
				kept[mode]++
				row += p.good(fmt.Sprintf("%-*s", cellWidth, "ok"))
			} else {
				row += p.bad(fmt.Sprintf("%-*s", cellWidth, outcome(r)))
			}
		}
		p.line("%s", strings.TrimRight(row, " "))
	}
	row := fmt.Sprintf("  %-*s %-*s", nameWidth, "as wanted", cellWidth, "")
	for _, mode := range modes {
		row += fmt.Sprintf("%-*s", cellWidth, fmt.Sprintf("%d of %d", kept[mode], len(expectations)))
	}
	p.line("%s", strings.TrimRight(row, " "))
	p.line("")
	p.line("%.0f seconds in all", time.Since(p.begin).Seconds())
}

// Command bench measures MeshVirt against peers, both sides in one run and in turns, and prints
// ratios: absolute figures of a shared machine say little.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
)

// Result is one line of the output and one element of the JSON array.
type Result struct {
	Name string `json:"name"`
	Unit string `json:"unit"`
	// Ours and Peer are medians over all rounds.
	Ours     float64 `json:"ours"`
	Peer     float64 `json:"peer"`
	PeerName string  `json:"peer_name"`
	// Ratio is the median of the rounds' own ratios, ours to the peer's.
	Ratio float64 `json:"ratio"`
	// Goal, such as "<= 1.00", is about Ratio or, after "ours ", about Ours. Empty means none.
	Goal string `json:"goal,omitempty"`
}

// suites are run in order.
var suites = []struct {
	name string
	run  func() ([]Result, error)
}{{"admission", admission}, {"process", process}, {"creation", creation}, {"datapath", datapath.run}}

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintf(os.Stderr, "bench: %v\n", err)
		os.Exit(1)
	}
}

func run(args []string, out io.Writer) error {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	file := flags.String("out", "", "`file` for the results as a JSON array")
	only := flags.String("suite", "", "run only these `suites`, separated by commas")
	doc := flags.String("docs", "", "Markdown `file`, docs/performance.md, to write the tables of the data path in anew")
	datapath.flags(flags)
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *doc != "" && datapath.only != "" {
		return errors.New("-docs with -sections: want all sections, for the tables are of one run")
	}
	var all []Result
	for _, suite := range suites {
		if *only != "" && !slices.Contains(strings.Split(*only, ","), suite.name) {
			continue
		}
		r, err := suite.run()
		if err != nil {
			return err
		}
		all = append(all, r...)
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tOURS\tPEER\tUNIT\tRATIO\tPEER NAME\tGOAL")
	for _, r := range all {
		verdict, err := r.verdict()
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "%s\t%.4g\t%.4g\t%s\t%.2f\t%s\t%s\n", r.Name, r.Ours, r.Peer, r.Unit, r.Ratio, r.PeerName, strings.TrimSpace(r.Goal+" "+verdict))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if *doc != "" {
		t, err := tables(all)
		if err == nil {
			err = rewrite(*doc, t)
		}
		if err != nil {
			return err
		}
	}
	if *file == "" {
		return nil
	}
	b, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(*file, append(b, '\n'), 0o644)
}

// compare makes a result from the rounds of both sides, which were run in turns.
func compare(name, unit, peerName string, ours, peer []float64) Result {
	ratios := make([]float64, len(ours))
	for i := range ours {
		ratios[i] = ours[i] / peer[i]
	}
	return Result{Name: name, Unit: unit, Ours: median(ours), Peer: median(peer), PeerName: peerName, Ratio: median(ratios)}
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}

package main

import (
	"fmt"
	"math"
	"strings"
)

// noise is how far two measurements of the same may lie apart on a machine that does other things too.
const noise = 0.08

// verdict compares a result with its goal. EVEN misses it by no more than noise.
func (r Result) verdict() (string, error) {
	if r.Goal == "" {
		return "", nil
	}
	value, text := r.Ratio, r.Goal
	if rest, ok := strings.CutPrefix(text, "ours "); ok {
		value, text = r.Ours, rest
	}
	var (
		op   string
		want float64
	)
	if _, err := fmt.Sscan(text, &op, &want); err != nil || op != "<=" && op != ">=" {
		return "", fmt.Errorf("%s: goal is %q, want <= or >= and a number", r.Name, r.Goal)
	}
	value = math.Round(value*100) / 100 // as it is printed
	if op == ">=" {
		value, want = -value, -want
	}
	switch {
	case value <= want:
		return "OK", nil
	case value <= want+noise*math.Abs(want):
		return "EVEN", nil
	}
	return "MISSED", nil
}

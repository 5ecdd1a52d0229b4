// Package cmdline knows the command line of istio-iptables in the dialects of all its releases, and of the shell
// scripts before it: it reads an argument list, changes it flag by flag, and says what the program takes a flag for. It
// does not know what follows from that in a pod.
package cmdline

import (
	"fmt"
	"slices"
	"strings"
)

// Args is an argument list of istio-iptables that can be read and changed flag by flag. What is not
// changed stays as it is, element by element, and so do operands such as the name of the
// sub-command: `istio-iptables -p 15001` can be given as a whole. The zero value is an empty list.
// A copy is independent of its original.
//
// The syntax is that of spf13/pflag, which the program uses: -p 15001, -p15001, -p=15001, --envoy-port
// 15001, --envoy-port=15001; shorthands of booleans may be grouped before another one; a boolean never
// takes the next element; `--` ends the flags; the last of repeated flags wins. `-x=` with nothing
// after it passes the literal "=".
//
// A flag that no known release has is never touched. Whether the next element is its value cannot be
// known; if that does not begin with a dash, nothing is ever put between the two.
type Args struct {
	tokens []token
	// What Within was told: who obeys the list, and the container's environment.
	release Release
	script  Script
	env     map[string]string
}

// A token is what belongs together in an argument list.
type token struct {
	// elems are the elements as they were given: two if a value is an element of its own, and
	// everything to the end for the token that begins with "--".
	elems []string
	// flags are those that the token sets, in order; none for operands and for what is unknown.
	// Several flags are a group of shorthands: one letter each behind the dash, all but the last booleans.
	flags []Flag
	// value is that of the last flag. It begins at byte at of the last element; at is -1 for the
	// "true" of a boolean that stands alone.
	value string
	at    int
}

// Parse reads an argument list. It fails if the last flag lacks its value.
func Parse(args []string) (Args, error) {
	a := Args{tokens: make([]token, 0, len(args))}
	for rest := slices.Clone(args); len(rest) > 0; {
		t, err := parseToken(rest)
		if err != nil {
			return Args{}, err
		}
		a.tokens = append(a.tokens, t)
		rest = rest[len(t.elems):]
	}
	return a, nil
}

func parseToken(args []string) (token, error) {
	switch s := args[0]; {
	case s == "--":
		return token{elems: args}, nil
	case !looksLikeFlag(s):
		return token{elems: args[:1]}, nil
	case strings.HasPrefix(s, "--"):
		return parseLong(args)
	default:
		return parseShort(args)
	}
}

func looksLikeFlag(s string) bool { return len(s) > 1 && s[0] == '-' }

func parseLong(args []string) (token, error) {
	name, value, hasValue := strings.Cut(args[0][2:], "=")
	f := Flag(name)
	d, ok := flags[f]
	switch {
	case !ok:
		return unknown(args), nil
	case hasValue:
		return token{elems: args[:1], flags: []Flag{f}, value: value, at: len(args[0]) - len(value)}, nil
	}
	return finish(args, []Flag{f}, d)
}

func parseShort(args []string) (token, error) {
	s := args[0]
	var group []Flag
	for i := 1; ; i++ {
		f, ok := shorthands[s[i]]
		if !ok {
			return unknown(args), nil
		}
		group = append(group, f)
		d, rest := flags[f], s[i+1:]
		switch {
		case len(rest) > 1 && rest[0] == '=':
			return token{elems: args[:1], flags: group, value: rest[1:], at: i + 2}, nil
		case rest == "":
			return finish(args, group, d)
		case !d.isBool:
			return token{elems: args[:1], flags: group, value: rest, at: i + 1}, nil
		}
	}
}

// finish makes the token of a flag that has no value in its own element.
func finish(args []string, group []Flag, d definition) (token, error) {
	switch {
	case d.isBool:
		return token{elems: args[:1], flags: group, value: "true", at: -1}, nil
	case len(args) > 1:
		return token{elems: args[:2], flags: group, value: args[1]}, nil
	default:
		return token{}, fmt.Errorf("argument %q is the last one, want a value after it for %s", args[0], group[len(group)-1])
	}
}

func unknown(args []string) token {
	if len(args) > 1 && !strings.Contains(args[0], "=") && !looksLikeFlag(args[1]) {
		return token{elems: args[:2]}
	}
	return token{elems: args[:1]}
}

// Strings gives the list; if nothing was changed, exactly the one that was parsed.
func (a Args) Strings() []string {
	var all []string
	for i := range a.tokens {
		all = append(all, a.tokens[i].elems...)
	}
	return all
}

// Value is the value of f as the program would see it, and whether the list has f at all.
func (a Args) Value(f Flag) (string, bool) {
	i := a.last(f)
	if i < 0 {
		return "", false
	}
	if t := a.tokens[i]; t.lastFlag() == f {
		return t.value, true
	}
	return "true", true // a boolean in front of others in a group
}

// Set gives f the value v. If the list has f already, its last occurrence changes in place, else
// --f=v is put after the last flag that has a short form, which are the ones that Istio's template begins with.
func (a *Args) Set(f Flag, v string) {
	old, ok := a.Value(f)
	i := a.last(f)
	switch {
	case !ok:
		a.replace(a.end(), 0, long(f, v))
	case old == v:
	case flags[f].isBool:
		a.replace(i, 1, append(a.tokens[i].without(f), long(f, v))...)
	default:
		a.replace(i, 1, a.tokens[i].with(v))
	}
}

// Remove takes every occurrence of f out of the list.
func (a *Args) Remove(f Flag) {
	for i := a.last(f); i >= 0; i = a.last(f) {
		a.replace(i, 1, a.tokens[i].without(f)...)
	}
}

// AddToList adds item, which has no comma in it, to the end of f's list unless it is there already.
func (a *Args) AddToList(f Flag, item string) {
	v, _ := a.Value(f)
	a.Set(f, AddItem(v, item))
}

// RemoveFromList takes item out of every occurrence of f. An f that it leaves without items goes as a
// whole: the program's default is the empty list too.
func (a *Args) RemoveFromList(f Flag, item string) {
	if v, _ := a.Value(f); v != "" && RemoveItem(v, item) == "" {
		a.Remove(f) // all of them, or an earlier one would come to life
		return
	}
	for i := len(a.tokens) - 1; i >= 0; i-- {
		t := a.tokens[i]
		if t.lastFlag() != f {
			continue
		}
		switch left := RemoveItem(t.value, item); left {
		case t.value:
		case "":
			a.replace(i, 1, t.without(f)...)
		default:
			a.replace(i, 1, t.with(left))
		}
	}
}

// Within tells a where it stands: the image that obeys it, whose tag says the release, which may be too old for a flag;
// and the environment, which a flag wins over. Without it the newest release and no environment are assumed.
func (a Args) Within(image string, env map[string]string) Args {
	a.release, a.script, a.env = ReleaseOf(image), scriptOf(image, a), env
	return a
}

// Release is the one that obeys the list.
func (a Args) Release() Release { return a.release }

// Script is what obeys the list in the place of the program, if anything.
func (a Args) Script() Script { return a.script }

// Knows reports whether the release has f, as far as it is known since when: an unknown flag ends the
// program, and with it the pod. -k came with 1.1. The exclusion of interfaces is in the oldest release that was
// looked at, 1.11; the shell scripts of the first ones do not have it.
func (a Args) Knows(f Flag) bool {
	switch f {
	case FlagRerouteInterfaces:
		return !a.release.Before(1, 1)
	case FlagExcludeInterfaces:
		return !a.release.Before(1, 11)
	}
	return true
}

// ExcludeInterface makes Istio leave the named interface alone: it goes from -k to the list of
// --istio-exclude-interfaces, if the release knows that. A new flag stands where -k was, in its long form, because
// -c is unknown to Istio 1.11. A list that the environment gives is taken into the flag that hides it.
func (a *Args) ExcludeInterface(name string) {
	a.enlist(FlagExcludeInterfaces, name, FlagRerouteInterfaces, func(v string) token { return long(FlagExcludeInterfaces, v) })
	a.strike(FlagRerouteInterfaces, name)
}

// Reroute is the inverse of ExcludeInterface: the named interface goes from the list of
// --istio-exclude-interfaces to -k. A new -k stands in two elements, as Istio's template writes it, where
// the exclusion was.
func (a *Args) Reroute(name string) {
	a.enlist(FlagRerouteInterfaces, name, FlagExcludeInterfaces, func(v string) token { return known("-k", v) })
	a.strike(FlagExcludeInterfaces, name)
}

// RerouteNothing takes -k out, and hides a list that the environment gives.
func (a *Args) RerouteNothing() {
	a.Remove(FlagRerouteInterfaces)
	a.hide(FlagRerouteInterfaces)
}

// enlist puts name into f's list. A flag that is new stands where beside is.
func (a *Args) enlist(f Flag, name string, beside Flag, make func(string) token) {
	switch given := Items(a.env[f.variable()]); {
	case !a.Knows(f):
	case a.last(f) >= 0:
		a.AddToList(f, name)
	case !slices.Contains(given, name):
		at := a.last(beside)
		if at < 0 {
			at = a.end()
		}
		a.replace(at, 0, make(AddItem(a.env[f.variable()], name)))
	}
}

// strike takes name out of f's list, also of one that the environment gives.
func (a *Args) strike(f Flag, name string) {
	if a.last(f) >= 0 {
		a.RemoveFromList(f, name)
		a.hide(f)
	} else if left := RemoveItem(a.env[f.variable()], name); left != a.env[f.variable()] {
		a.Set(f, left)
	}
}

// hide gives f an empty list, if it has none and the environment would give one.
func (a *Args) hide(f Flag) {
	if a.last(f) < 0 && len(Items(a.env[f.variable()])) > 0 {
		a.Set(f, "")
	}
}

// last is the index of the last token that sets f, or -1.
func (a Args) last(f Flag) int {
	for i := len(a.tokens) - 1; i >= 0; i-- {
		if slices.Contains(a.tokens[i].flags, f) {
			return i
		}
	}
	return -1
}

// end is where a new flag goes: behind the last flag with a short form, or else at the end of the flags.
func (a Args) end() int {
	for i := len(a.tokens) - 1; i >= 0; i-- {
		if f := a.tokens[i].lastFlag(); f != "" && flags[f].short != 0 {
			return i + 1
		}
	}
	if n := len(a.tokens); n > 0 && a.tokens[n-1].elems[0] == "--" {
		return n - 1
	}
	return len(a.tokens)
}

// replace puts tokens in the place of the n tokens at i, in a new slice: copies of a stay as they are.
func (a *Args) replace(i, n int, tokens ...token) {
	a.tokens = slices.Concat(a.tokens[:i], tokens, a.tokens[i+n:])
}

// long is f with the value v in one element.
func long(f Flag, v string) token { return known("--" + string(f) + "=" + v) }

// known is the token that elems, known flags and the value of the last one, are.
func known(elems ...string) token {
	t, _ := parseToken(elems) // fails only without a value
	return t
}

func (t token) lastFlag() Flag {
	if len(t.flags) == 0 {
		return ""
	}
	return t.flags[len(t.flags)-1]
}

// with gives t's last flag, no boolean, another value, in the form in which it has one.
func (t token) with(v string) token {
	head := t.elems[len(t.elems)-1][:t.at]
	switch attached := !strings.HasSuffix(head, "="); {
	case head == "": // an element of its own
		return known(t.elems[0], v)
	case v == "" && !strings.HasPrefix(head, "--"): // "-k=" would pass "=", "-k" take the next element
		return known(strings.TrimSuffix(head, "="), v)
	case attached && strings.HasPrefix(v, "="): // "-k=eth0" would pass "eth0"
		return known(head + "=" + v)
	default:
		return known(head + v)
	}
}

// without takes f out of t; nothing may be left.
func (t token) without(f Flag) []token {
	letters := "-"
	for i, x := range t.flags {
		if x != f {
			letters += t.elems[0][i+1 : i+2]
		}
	}
	switch {
	case letters == "-":
		return nil
	case t.lastFlag() == f: // and its value with it
		return []token{known(letters)}
	default:
		tail := t.elems[0][1+len(t.flags):]
		return []token{known(slices.Concat([]string{letters + tail}, t.elems[1:])...)}
	}
}

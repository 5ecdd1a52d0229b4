package cmdline

import "strconv"

// A Setting is what the program takes a flag for, and where that stands: the name of the flag, "environment variable" and
// its name, or Default.
type Setting struct{ From, Value string }

// Default is where a setting stands that nobody makes.
const Default = "default"

// Setting is that of f. A flag wins over the environment, and that over the default.
func (a Args) Setting(f Flag) Setting {
	if v, ok := a.Value(f); ok {
		return Setting{f.String(), v}
	}
	if len(a.env) > 0 {
		for _, name := range a.variables(f) {
			v := a.env[name]
			if v == "" {
				continue
			}
			if _, err := strconv.ParseBool(v); err == nil || !flags[f].isBool { // the program skips a boolean that is none
				return Setting{"environment variable " + name, v}
			}
		}
	}
	if v, ok := a.script.defaults(f); ok {
		return Setting{Default, v}
	}
	return Setting{Default, flags[f].value}
}

// variables are those that set f, the winner first.
func (a Args) variables(f Flag) []string {
	var names []string
	if env := flags[f].env; env != "" && !(f == FlagDualStack && a.release.Before(1, 22)) {
		names = append(names, env)
	}
	// Newer releases do not read ENVOY_PORT: a service called envoy gives every container such a variable.
	if f != FlagOutboundPort || a.release.Before(1, 22) {
		names = append(names, f.variable())
	}
	return names
}

package istio

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/meshvirt/meshvirt/test/e2e/netlab/corpus"
)

// Corpus is a directory of recordings, <version>/<case>.{args,iptables-save,ip6tables-save,nft} and
// perhaps <version>/cases.json, which also tells the environment and how often the program was run.
type Corpus struct{ FS fs.FS }

// Embedded are the recordings that come with the lab.
func Embedded() Corpus { return Corpus{corpus.Embedded(testdata, "testdata")} }

// A Case is one recorded run of istio-iptables.
type Case struct {
	Version, Name string
	Args          []string
	Env           map[string]string
	Runs          int      // how often the program was run; zero means once
	Addresses     []string // the pod's; none if not known
	ResolvConf    string   // /etc/resolv.conf of the run; empty if not known
}

// IPv6Only says that the pod had no address of IPv4, by which the program chose, not by its arguments.
func (k Case) IPv6Only() bool {
	return len(k.Addresses) > 0 && !slices.ContainsFunc(k.Addresses, func(a string) bool { return strings.Contains(a, ".") })
}

// Versions lists the recorded versions, the oldest first.
func (c Corpus) Versions() ([]string, error) { return versions(c.FS) }

// Cases lists what was recorded of a version, by name. Its errors name the file.
func (c Corpus) Cases(version string) ([]Case, error) {
	byName := map[string]Case{}
	index, err := c.index(version)
	if err != nil {
		return nil, err
	}
	for _, e := range index {
		byName[e.Name] = Case{version, e.Name, e.Args, e.Env, e.Runs, e.Addresses, e.ResolvConf}
	}
	files, err := fs.Glob(c.FS, version+"/*.args")
	if err != nil {
		return nil, err
	}
	for _, file := range files {
		b, err := fs.ReadFile(c.FS, file)
		if err != nil {
			return nil, err
		}
		name := strings.TrimSuffix(path.Base(file), ".args")
		e := byName[name]
		e.Version, e.Name, e.Args = version, name, nil
		if err := json.Unmarshal(b, &e.Args); err != nil {
			return nil, fmt.Errorf("%s: %w, want a JSON array of arguments", file, err)
		}
		byName[name] = e
	}
	var all []Case
	for _, e := range byName {
		all = append(all, e)
	}
	slices.SortFunc(all, func(a, b Case) int { return strings.Compare(a.Name, b.Name) })
	return all, nil
}

type indexed struct {
	Name      string            `json:"case"`
	Args      []string          `json:"args"`
	Env       map[string]string `json:"env"`
	Runs      int               `json:"times_run"`
	Addresses []string          `json:"pod_addresses"`

	ResolvConf string `json:"resolv_conf"`
}

// index reads cases.json, if there is one.
func (c Corpus) index(version string) ([]indexed, error) {
	list, err := corpus.Cases[indexed](c.FS, version+"/cases.json")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return list, err
}

// Recorded gives the rules of a case as they were recorded, and what else its arguments lead to.
func (c Corpus) Recorded(k Case) (Rules, Settings, error) {
	o, err := read(k.Version, k.Args, k.Env)
	if err != nil {
		return Rules{}, Settings{}, err
	}
	r := Rules{Version: k.Version, DNS: o.dns, TProxy: o.tproxy}
	for _, f := range []struct {
		text *string
		ext  string
	}{{&r.IPv4, "iptables-save"}, {&r.IPv6, "ip6tables-save"}, {&r.NFT, "nft"}} {
		// Rules of iptables have a recording as nft shows them, too.
		if o.native != (f.ext == "nft") {
			continue
		}
		b, err := fs.ReadFile(c.FS, path.Join(k.Version, k.Name+"."+f.ext))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return Rules{}, Settings{}, err
		}
		*f.text = string(b)
	}
	// Old versions do not look at the environment variable for it.
	r.DualStack = r.IPv6 != "" || o.native && (o.dual || k.IPv6Only())
	o.dual, o.virtual4 = r.DualStack, lets6Pass(r, o)
	s := o.settings()
	if exempt := (saveText{4}).render("ISTIO_INBOUND", []rule{{proto: "tcp", dport: "22", jump: "RETURN"}}); strings.Contains(r.IPv4, exempt[0]) && !slices.Contains(s.ExcludeInPorts, 22) {
		s.ExcludeInPorts = append(s.ExcludeInPorts, 22) // before 1.13, whatever the arguments say
	}
	return r, s, nil
}

// lets6Pass finds rules of IPv6 that return what comes from virtual interfaces, where those of IPv4 redirect all of it.
// Istio 1.11 was recorded to write such, in a pod of IPv6 alone; 1.18 no more.
func lets6Pass(r Rules, o options) bool {
	if r.IPv6 == "" || len(o.virtual) == 0 || !o.includeCIDRs.all() {
		return false
	}
	redirect := (saveText{6}).render("PREROUTING", []rule{{in: o.virtual[0], jump: "ISTIO_REDIRECT"}})
	return !strings.Contains(r.IPv6, redirect[0])
}

// Adapted gives the rules that the run of a case would have left with arguments that differ from its
// own in interfaces only, as MeshVirt's do. It refuses with an error any other difference.
func (c Corpus) Adapted(k Case, args []string, env map[string]string) (Rules, error) {
	r, _, err := c.Recorded(k)
	if err != nil {
		return Rules{}, err
	}
	was, err := read(k.Version, k.Args, k.Env)
	if err != nil {
		return Rules{}, err
	}
	o, err := read(k.Version, args, env)
	if err != nil {
		return Rules{}, err
	}
	was.virtual4 = lets6Pass(r, was)
	o.virtual4 = was.virtual4
	rest, wasRest := o, was
	rest.virtual, rest.exclude, wasRest.virtual, wasRest.exclude = nil, nil, nil, nil
	if got, want := fmt.Sprintf("%+v", rest), fmt.Sprintf("%+v", wasRest); got != want {
		return Rules{}, fmt.Errorf("istio-iptables arguments cannot be represented: case %s of %s is %s, and more than interfaces differs in %s", k.Name, k.Version, want, got)
	}
	for _, t := range []struct {
		text *string
		dialect
	}{{&r.IPv4, saveText{4}}, {&r.IPv6, saveText{6}}, {&r.NFT, nftText{}}} {
		if *t.text == "" {
			continue
		}
		if *t.text, err = moveInterfaces(*t.text, t.dialect, was, o); err != nil {
			return Rules{}, fmt.Errorf("istio %s, case %s: %w", k.Version, k.Name, err)
		}
	}
	return r, nil
}

// moveInterfaces replaces the rules that was asks for by those that o asks for.
func moveInterfaces(text string, d dialect, was, o options) (string, error) {
	lines := strings.SplitAfter(text, "\n")
	type change struct {
		table, chain string
		old, new     []rule
	}
	changes := []change{
		{nat, "PREROUTING", prerouting(d, was), prerouting(d, o)},
		{nat, "OUTPUT", excludedInterfaces(was), excludedInterfaces(o)},
	}
	if o.tproxy {
		changes = append(changes,
			change{mangle, "PREROUTING", excludedInbound(was), excludedInbound(o)},
			change{mangle, "OUTPUT", excludedInterfaces(was), excludedInterfaces(o)})
	}
	for _, c := range changes {
		first, end := d.find(lines, c.table, c.chain)
		old := d.render(c.chain, c.old)
		if n := end - first; n < len(old) || !slices.Equal(lines[first:first+len(old)], old) {
			if n > 0 || len(old) > 0 {
				return "", fmt.Errorf("cannot be represented: chain %s has\n%swant it to begin with\n%s", c.chain, strings.Join(lines[first:end], ""), strings.Join(old, ""))
			}
		}
		if first == end {
			if first = d.start(lines, c.table, c.chain); first < 0 {
				return "", fmt.Errorf("cannot be represented: there is no place for a rule in chain %s", c.chain)
			}
		}
		lines = slices.Concat(lines[:first], d.render(c.chain, c.new), lines[first+len(old):])
	}
	return strings.Join(lines, ""), nil
}

// start is where the first rule of the nat table's chain would be, if it has none; negative if there is no such chain.
func (saveText) start(lines []string, table, _ string) int {
	inTable := false
	for i, line := range lines {
		inTable = inTable || line == "*"+table+"\n"
		if inTable && (strings.HasPrefix(line, "-A ") || line == "COMMIT\n") {
			return i
		}
	}
	return -1
}

func (nftText) start(lines []string, table, chain string) int {
	inTable, inChain := false, false
	for i, line := range lines {
		inTable = inTable || line == "table inet istio-proxy-"+table+" {\n"
		inChain = inChain || inTable && line == "\tchain "+nftChain(chain)+" {\n"
		if inChain && strings.HasPrefix(line, "\t\ttype ") {
			return i + 1
		}
	}
	return -1
}

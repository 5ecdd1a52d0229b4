package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/google/nftables"

	"github.com/meshvirt/meshvirt/pkg/nft"
	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/rules"
	"github.com/meshvirt/meshvirt/pkg/templates"
	"github.com/meshvirt/meshvirt/test/e2e/netlab"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/istio"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/netns"
)

// scattered gives n CIDRs that cannot be merged: 100.0.0.0/28, 100.0.1.0/28 and so on, which have no
// address of the lab.
func scattered(n int) []netip.Prefix {
	out := make([]netip.Prefix, n)
	for i := range out {
		out[i] = netip.PrefixFrom(netip.AddrFrom4([4]byte{100, byte(i >> 8), byte(i), 0}), 28)
	}
	return out
}

// joined is a list for istio-iptables.
func joined(cidrs []netip.Prefix) string {
	s := make([]string, len(cidrs))
	for i, c := range cidrs {
		s[i] = c.String()
	}
	return strings.Join(s, ",")
}

// excluding are the rules of a plan with n excluded CIDRs.
func excluding(p plan.Plan, n int) (nft.Ruleset, error) {
	p.Outbound.ExcludeCIDRs = scattered(n)
	return rules.Build(p, rules.Pod{})
}

func apply(r nft.Ruleset, ns *netns.Namespace) error {
	return r.Apply(nftables.WithNetNSFd(int(ns.File().Fd())))
}

// A loader puts rules with a number of excluded CIDRs into a namespace.
type loader struct {
	name string
	load func(*netns.Namespace) error
}

// setUp compares ours with what istio-iptables would load for the same exclusions. Both are measured
// from the start of a process to its end, in a fresh namespace; ours without a process as well.
func (d *dataPath) setUp(ctx context.Context) (results []Result, err error) {
	dir, err := os.MkdirTemp("", "bench-rules-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	for _, n := range d.cidrs {
		d.log("setting up %d excluded CIDRs", n)
		ours, err := ourLoaders(ctx, n)
		if err != nil {
			return nil, err
		}
		peers, err := istioLoaders(n, dir)
		if err != nil {
			return nil, err
		}
		all := append(ours, peers...)
		took := make([][]float64, len(all))
		for round := range d.rounds {
			for i := range all {
				if round%2 == 1 {
					i = len(all) - 1 - i
				}
				t, err := timed(all[i])
				if err != nil {
					return nil, fmt.Errorf("set up %d CIDRs by %s: %w", n, all[i].name, err)
				}
				took[i] = append(took[i], t)
			}
		}
		for i, o := range ours {
			for j, p := range peers {
				m := metric{o.name + " to " + p.name, "ms"}
				results = append(results, against(setUp, fmt.Sprintf("%d CIDRs", n), m, p.name, took[i], took[len(ours)+j]))
			}
		}
	}
	return results, nil
}

// timed is how long a loader takes in a fresh namespace, in milliseconds.
func timed(l loader) (float64, error) {
	ns, err := netns.New("rules")
	if err != nil {
		return 0, err
	}
	defer ns.Close()
	start := time.Now()
	err = l.load(ns)
	return time.Since(start).Seconds() * 1e3, err
}

// ourLoaders are what the program does and, unless so many CIDRs do not fit into its environment, the program.
func ourLoaders(ctx context.Context, n int) ([]loader, error) {
	pod, err := admitted(recipe{mode: plan.Rules})
	if err != nil {
		return nil, err
	}
	p, err := planOf(pod)
	if err != nil {
		return nil, err
	}
	loaders := []loader{{"pkg/rules", func(ns *netns.Namespace) error {
		r, err := excluding(p, n)
		if err != nil {
			return err
		}
		return apply(r, ns)
	}}}
	p.Outbound.ExcludeCIDRs = scattered(n)
	if len(joined(p.Outbound.ExcludeCIDRs)) > plan.MaxEncoded {
		return loaders, nil
	}
	env, err := p.Encode()
	if err != nil {
		return nil, err
	}
	program, err := netlab.Build(ctx, "cmd/rules")
	if err != nil {
		return nil, err
	}
	return append(loaders, loader{templates.RulesName, func(ns *netns.Namespace) error {
		cmd := exec.Command("/proc/self/fd/3")
		cmd.ExtraFiles, cmd.Env = []*os.File{program}, []string{plan.Env + "=" + env}
		_, err := ns.Run(cmd)
		return err
	}}), nil
}

// istioLoaders load what the recorded pod's istio-init writes if it has these exclusions.
func istioLoaders(n int, dir string) ([]loader, error) {
	pod, err := admitted(recipe{mode: plan.Off, excluded: n})
	if err != nil {
		return nil, err
	}
	c := istioInit(pod)
	written, err := istio.Derive(c.Image[strings.LastIndexByte(c.Image, ':')+1:], c.Args, nil)
	if err != nil {
		return nil, err
	}
	if got := strings.Count(written.IPv4, "/28 -j RETURN"); got != n {
		return nil, fmt.Errorf("istio-iptables writes %d rules for %d CIDRs, want one each", got, n)
	}
	file := fmt.Sprintf("%s/%d", dir, n)
	if err := os.WriteFile(file, []byte(written.IPv4), 0o600); err != nil {
		return nil, err
	}
	var loaders []loader
	for _, program := range []string{"iptables-nft-restore", "iptables-legacy-restore"} {
		loaders = append(loaders, loader{program, func(ns *netns.Namespace) error {
			in, err := os.Open(file)
			if err != nil {
				return err
			}
			defer in.Close()
			cmd := exec.Command(program, "--noflush")
			cmd.Stdin = in
			_, err = ns.Run(cmd)
			return err
		}})
	}
	return loaders, nil
}

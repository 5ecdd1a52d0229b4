package istio

import (
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
)

// excluding makes of a case's arguments what MeshVirt makes of them.
func excluding(args []string, name string) []string {
	args = slices.Clone(args)
	if i := slices.Index(args, "-k"); i >= 0 {
		args = slices.Delete(args, i, i+2)
	}
	for i, a := range args[:len(args)-1] {
		if a == "-c" || a == "--istio-exclude-interfaces" {
			args[i+1] += "," + name
			return args
		}
	}
	return append(args, "--istio-exclude-interfaces="+name)
}

// TestAdapted compares the rules of each recorded case with the interface moved with those derived for
// the same arguments from other cases.
func TestAdapted(t *testing.T) {
	compared := 0
	for _, version := range Versions() {
		cases, err := Embedded().Cases(version)
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range cases {
			args := excluding(k.Args, "k6t-eth0")
			want, err := Derive(version, inPod(args, k.Addresses), k.Env)
			if err != nil {
				t.Fatal(err)
			}
			if want.Empty() {
				continue
			}
			got, err := Embedded().Adapted(k, args, k.Env)
			if err != nil {
				t.Errorf("%s, %s: %v", version, k.Name, err)
				continue
			}
			for _, text := range [][2]string{{want.IPv4, got.IPv4}, {want.IPv6, got.IPv6}, {want.NFT, got.NFT}} {
				if diff := cmp.Diff(rulesOf(text[0]), rulesOf(text[1])); diff != "" {
					t.Errorf("%s, %s (-derived +adapted)\n%s", version, k.Name, diff)
				}
			}
			if want.DualStack != got.DualStack || want.DNS != got.DNS {
				t.Errorf("%s, %s: dual stack %t, DNS %t, want %t, %t", version, k.Name, got.DualStack, got.DNS, want.DualStack, want.DNS)
			}
			compared++
		}
	}
	if compared < 80 {
		t.Errorf("%d cases were compared, want more than 80", compared)
	}
}

// other is a corpus with ports, a user and a form of arguments that the lab's own recordings do not have.
func other(rules string) (Corpus, Case) {
	c := Corpus{fstest.MapFS{
		"1.27.3/odd.args":          {Data: []byte(`["--envoy-port=16001", "-z", "16006", "--proxy-uid", "1400", "-m", "REDIRECT", "-i", "*", "-b", "*", "-k", "k6t-eth0", "-c", "net1"]`)},
		"1.27.3/odd.iptables-save": {Data: []byte(rules)},
	}}
	cases, err := c.Cases("1.27.3")
	if err != nil || len(cases) != 1 {
		panic(err)
	}
	return c, cases[0]
}

const oddRules = `*nat
:PREROUTING ACCEPT [0:0]
-A PREROUTING -i k6t-eth0 -j ISTIO_REDIRECT
-A PREROUTING -i k6t-eth0 -j RETURN
-A PREROUTING -i net1 -j RETURN
-A PREROUTING -p tcp -j ISTIO_INBOUND
-A OUTPUT -o net1 -j RETURN
-A OUTPUT -j ISTIO_OUTPUT
-A ISTIO_OUTPUT -m owner --uid-owner 1400 -j RETURN
-A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 16001
COMMIT
`

func TestAdaptedFromOtherRecordings(t *testing.T) {
	c, k := other(oddRules)
	_, s, err := c.Recorded(k)
	if err != nil {
		t.Fatal(err)
	}
	if s.OutboundPort != 16001 || s.InboundPort != 16006 || s.UID != 1400 || s.GID != 1400 || !slices.Equal(s.Virtual, []string{"k6t-eth0"}) {
		t.Errorf("got %+v, want the ports, the user and the interface of the arguments", s)
	}
	got, err := c.Adapted(k, excluding(k.Args, "k6t-eth0"), nil)
	if err != nil {
		t.Fatal(err)
	}
	want := strings.NewReplacer(
		"-A PREROUTING -i k6t-eth0 -j ISTIO_REDIRECT\n-A PREROUTING -i k6t-eth0 -j RETURN\n-A PREROUTING -i net1 -j RETURN\n",
		"-A PREROUTING -i net1 -j RETURN\n-A PREROUTING -i k6t-eth0 -j RETURN\n",
		"-A OUTPUT -o net1 -j RETURN\n", "-A OUTPUT -o net1 -j RETURN\n-A OUTPUT -o k6t-eth0 -j RETURN\n",
	).Replace(oddRules)
	if diff := cmp.Diff(want, got.IPv4); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// TestAdaptedFromOldIPv6: where the rules of IPv6 let the interface pass, it can be moved nonetheless.
func TestAdaptedFromOldIPv6(t *testing.T) {
	const rules6 = `*nat
-A PREROUTING -i k6t-eth0 -j RETURN
-A PREROUTING -i k6t-eth0 -j RETURN
-A PREROUTING -i net1 -j RETURN
-A PREROUTING -p tcp -j ISTIO_INBOUND
-A OUTPUT -o net1 -j RETURN
-A OUTPUT -p tcp -j ISTIO_OUTPUT
COMMIT
`
	c, k := other(oddRules)
	c.FS.(fstest.MapFS)["1.27.3/odd.ip6tables-save"] = &fstest.MapFile{Data: []byte(rules6)}
	if _, s, err := c.Recorded(k); err != nil || !s.Virtual4 || !s.DualStack {
		t.Errorf("got %+v, %v, want settings that say so", s, err)
	}
	for want, args := range map[string][]string{rules6: k.Args, strings.NewReplacer(
		"-A PREROUTING -i k6t-eth0 -j RETURN\n-A PREROUTING -i k6t-eth0 -j RETURN\n-A PREROUTING -i net1 -j RETURN\n",
		"-A PREROUTING -i net1 -j RETURN\n-A PREROUTING -i k6t-eth0 -j RETURN\n",
		"-A OUTPUT -o net1 -j RETURN\n", "-A OUTPUT -o net1 -j RETURN\n-A OUTPUT -o k6t-eth0 -j RETURN\n",
	).Replace(rules6): excluding(k.Args, "k6t-eth0")} {
		got, err := c.Adapted(k, args, nil)
		if diff := cmp.Diff(want, got.IPv6); diff != "" || err != nil {
			t.Errorf("%v: %v (-want +got)\n%s", args, err, diff)
		}
	}
}

// TestIPv6Only: native nftables cover IPv6 in a pod that has nothing else, whatever the arguments say.
func TestIPv6Only(t *testing.T) {
	for addresses, want := range map[string]bool{"": false, "fd00::1/64": true, "10.0.0.1/24": false, "10.0.0.1/24 fd00::1/64": false} {
		k := Case{Version: "1.31.0-rc.0", Name: "native-nft-k-k6t-eth0", Args: []string{"--native-nftables"}, Addresses: strings.Fields(addresses)}
		r, s, err := Embedded().Recorded(k)
		if k.IPv6Only() != want || r.DualStack != want || s.DualStack != want || err != nil {
			t.Errorf("addresses %q: got %t, %t, %t, %v, want %t", addresses, k.IPv6Only(), r.DualStack, s.DualStack, err, want)
		}
	}
}

func TestAdaptedRefuses(t *testing.T) {
	c, k := other(oddRules)
	for name, f := range map[string]struct {
		rules string
		args  []string
		want  string
	}{
		"another port":         {oddRules, append(slices.Clone(k.Args), "-p", "15001"), "more than interfaces differs"},
		"an unknown option":    {oddRules, append(slices.Clone(k.Args), "--teleport"), "unknown flag: --teleport"},
		"other recorded rules": {strings.Replace(oddRules, "-i net1", "-i net2", 1), k.Args, "want it to begin with"},
	} {
		t.Run(name, func(t *testing.T) {
			c, k = other(f.rules)
			if _, err := c.Adapted(k, f.args, nil); err == nil || !strings.Contains(err.Error(), f.want) {
				t.Errorf("got %v, want an error with %q", err, f.want)
			}
		})
	}
}

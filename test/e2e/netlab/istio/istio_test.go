package istio

import (
	"encoding/json"
	"path"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

type recordedCase struct {
	Case string            `json:"case"`
	Args []string          `json:"args"`
	Env  map[string]string `json:"env"`

	Addresses []string `json:"pod_addresses"`
}

func indexOf(t *testing.T, version string) []recordedCase {
	t.Helper()
	b, err := testdata.ReadFile(path.Join("testdata", version, "cases.json"))
	if err != nil {
		t.Fatal(err)
	}
	var cases []recordedCase
	if err := json.Unmarshal(b, &cases); err != nil {
		t.Fatal(err)
	}
	return cases
}

// rulesOf strips what differs from run to run, and sections without a rule.
func rulesOf(s string) string {
	var out []string
	for _, line := range strings.Split(s, "\n") {
		if !strings.HasPrefix(line, "#") {
			out = append(out, line)
		}
	}
	return strings.ReplaceAll(strings.Join(out, "\n"), "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n", "")
}

// inPod gives the arguments for Derive of a run in a pod with some addresses, if these are known.
func inPod(args, addresses []string) []string {
	if len(addresses) == 1 && strings.Contains(addresses[0], ":") {
		return InIPv6(args)
	}
	return args
}

// TestDerive derives every recorded case from the few base cases and compares the result with what
// the real program wrote.
func TestDerive(t *testing.T) {
	derived := 0
	for _, version := range Versions() {
		for _, c := range indexOf(t, version) {
			t.Run(version+"/"+c.Case, func(t *testing.T) {
				got, err := Derive(version, inPod(c.Args, c.Addresses), c.Env)
				if err != nil {
					t.Fatal(err)
				}
				for _, r := range []struct{ ext, got string }{{"iptables-save", got.IPv4}, {"ip6tables-save", got.IPv6}, {"nft", got.NFT}} {
					want := ""
					if recorded(version, c.Case+"."+r.ext) {
						if want, err = recording(version, c.Case+"."+r.ext); err != nil {
							t.Fatal(err)
						}
					}
					if diff := cmp.Diff(rulesOf(want), rulesOf(r.got)); diff != "" {
						t.Errorf("%s (-want +got)\n%s", r.ext, diff)
					}
				}
				derived++
			})
		}
	}
	if derived < 80 {
		t.Errorf("%d cases were compared, want more than 80", derived)
	}
}

// TestDeriveMeshVirt has the arguments that MeshVirt's webhook makes of a virt-launcher pod's.
func TestDeriveMeshVirt(t *testing.T) {
	args := []string{"istio-iptables", "-p", "15001", "-z", "15006", "-u", "1337", "-m", "REDIRECT", "-i", "*", "-x", "", "-b", "*",
		"-d", "15090,15021,15020", "--istio-exclude-interfaces=k6t-eth0", "--dual-stack"}
	for _, version := range Versions() {
		got, err := Derive(version, args, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range []string{got.IPv4, got.IPv6} {
			if !strings.Contains(text, "-A PREROUTING -i k6t-eth0 -j RETURN\n-A PREROUTING -p tcp -j ISTIO_INBOUND\n") ||
				!strings.Contains(text, "-A OUTPUT -o k6t-eth0 -j RETURN\n-A OUTPUT ") || strings.Contains(text, "-i k6t-eth0 -j ISTIO_REDIRECT") {
				t.Errorf("%s: the interface is not excluded:\n%s", version, text)
			}
		}
		if !got.DualStack {
			t.Errorf("%s: not dual stack", version)
		}
	}
}

// TestDeriveTProxy has what was not recorded: the rules that name an excluded interface or an address of IPv6.
func TestDeriveTProxy(t *testing.T) {
	args := []string{"-m", "TPROXY", "-i", "*", "-b", "*", "-d", "15021", "-c", "k6t-eth0", "--dual-stack"}
	save := func(loopback, source, on string) []string {
		return []string{
			"-A PREROUTING -i k6t-eth0 -j RETURN", "-A PREROUTING -p tcp -j ISTIO_INBOUND", "-A OUTPUT -o k6t-eth0 -j RETURN",
			"-A OUTPUT ! -d " + loopback + " -o lo -p tcp -m owner --gid-owner 1337 -j MARK --set-xmark 0x53a/0xffffffff",
			"-A ISTIO_INBOUND -s " + source + " -i lo -p tcp -j RETURN",
			"-A ISTIO_INBOUND -p tcp -m tcp --dport 15021 -j RETURN\n-A ISTIO_INBOUND -p tcp -m conntrack --ctstate RELATED,ESTABLISHED -j ISTIO_DIVERT\n-A ISTIO_INBOUND -p tcp -j ISTIO_TPROXY",
			"-A ISTIO_TPROXY ! -d " + loopback + " -p tcp -j TPROXY --on-port 15006 --on-ip " + on + " --tproxy-mark 0x539/0xffffffff",
		}
	}
	for _, c := range []struct {
		version string
		more    []string
		want    map[string][]string // by what Rules has them in
	}{
		{"1.18.7", nil, map[string][]string{"ipv4": save("127.0.0.1/32", "127.0.0.6/32", "0.0.0.0"), "ipv6": save("::1/128", "::6/128", "::")}},
		{"1.31.0-rc.0", nil, map[string][]string{"ipv4": save("127.0.0.1/32", "127.0.0.6/32", "0.0.0.0"), "ipv6": save("::1/128", "::6/128", "::")}},
		{"1.31.0-rc.0", []string{"--native-nftables", "--redirect-dns"}, map[string][]string{"nft": {
			`iifname "k6t-eth0" counter packets 0 bytes 0 return`,
			"ip6 daddr != ::1 tproxy ip6 to :15006 meta mark set 0x00000539", "ip6 saddr ::6 counter packets 0 bytes 0 return",
			"meta l4proto tcp ip6 daddr != ::1 meta skgid 1337 counter packets 0 bytes 0 meta mark set 0x0000053a",
		}}},
		{"1.29.6", []string{"-b", "80"}, map[string][]string{"ipv4": {
			"-A ISTIO_INBOUND -p tcp -m tcp --dport 80 -m conntrack --ctstate RELATED,ESTABLISHED -j ISTIO_DIVERT\n-A ISTIO_INBOUND -p tcp -m tcp --dport 80 -j ISTIO_TPROXY\n-A ISTIO_TPROXY",
		}}},
	} {
		got, err := Derive(c.version, append(args[:len(args):len(args)], c.more...), nil)
		if err != nil {
			t.Fatal(err)
		}
		if !got.TProxy || !got.DualStack {
			t.Errorf("%s: %+v, want TPROXY for both families", c.version, got)
		}
		for where, want := range c.want {
			text := map[string]string{"ipv4": got.IPv4, "ipv6": got.IPv6, "nft": got.NFT}[where]
			for _, line := range want {
				if !strings.Contains(text, line) {
					t.Errorf("%s %s: no %q in\n%s", c.version, where, line, text)
				}
			}
			translated := saveText{}.section(text, nat) + nftText{}.section(text, nat)
			if strings.Contains(translated, "-j ISTIO_INBOUND") || strings.Contains(translated, "jump istio-inbound") || translated == "" {
				t.Errorf("%s %s: inbound connections are redirected as well:\n%s", c.version, where, text)
			}
		}
	}
}

func TestDeriveRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		version string
		args    string
		env     map[string]string
		want    string
	}{
		"another port":                       {"1.29.6", "-p 16001", nil, "only 15001 was recorded"},
		"another user":                       {"1.29.6", "-u 1338", nil, "only 1337 was recorded"},
		"TPROXY of no port":                  {"1.29.6", "-m TPROXY", nil, "recorded with inbound ports"},
		"TPROXY with another mark":           {"1.29.6", "-m TPROXY -b * -t 15", nil, "only 1337 was recorded"},
		"another interception":               {"1.29.6", "-m NONE", nil, "-mode=NONE: not recorded"},
		"an unknown option":                  {"1.29.6", "--teleport", nil, "unknown flag: --teleport"},
		"a bad CIDR":                         {"1.29.6", "-x 10.96.0.0", nil, "10.96.0.0"},
		"owner groups":                       {"1.29.6", "", map[string]string{"ISTIO_OUTBOUND_OWNER_GROUPS": "1000"}, "ISTIO_OUTBOUND_OWNER_GROUPS"},
		"an old version":                     {"1.9.0", "", nil, "older than those recorded"},
		"no version":                         {"latest", "", nil, "older than those recorded"},
		"nftables before 1.28":               {"1.22.8", "--native-nftables", nil, "has no recording"},
		"dual stack with capture of all DNS": {"1.29.6", "--dual-stack --redirect-dns --capture-all-dns", nil, "combination was not recorded"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Derive(c.version, strings.Fields(c.args), c.env)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got error %v, want one with %q", err, c.want)
			}
		})
	}
}

func TestDeriveNothing(t *testing.T) {
	got, err := Derive("1.30.2", []string{"istio-iptables", "--run-validation", "--skip-rule-apply"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if !got.Empty() || got.Version != "1.29.6" {
		t.Errorf("got %+v, want no rules, as of 1.29.6", got)
	}
}

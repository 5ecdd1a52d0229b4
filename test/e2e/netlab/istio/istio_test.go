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
}

func casesOf(t *testing.T, version string) []recordedCase {
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

// TestDerive derives every recorded case from the few base cases and compares the result with what
// the real program wrote.
func TestDerive(t *testing.T) {
	derived := 0
	for _, version := range Versions() {
		for _, c := range casesOf(t, version) {
			t.Run(version+"/"+c.Case, func(t *testing.T) {
				got, err := Derive(version, c.Args, c.Env)
				if err != nil {
					t.Fatal(err)
				}
				for _, r := range []struct{ ext, got string }{{"iptables-save", got.IPv4}, {"ip6tables-save", got.IPv6}, {"nft", got.NFT}} {
					want := ""
					if recorded(version, c.Case+"."+r.ext) {
						if want, err = read(version, c.Case+"."+r.ext); err != nil {
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

func TestDeriveRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		version string
		args    string
		env     map[string]string
		want    string
	}{
		"another port":                       {"1.29.6", "-p 16001", nil, "only 15001 was recorded"},
		"another user":                       {"1.29.6", "-u 1338", nil, "only 1337 was recorded"},
		"TPROXY":                             {"1.29.6", "-m TPROXY", nil, "only REDIRECT was recorded"},
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

package mesh

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/meshvirt/meshvirt/pkg/cmdline"
)

// The shell scripts of Istio before 1.4 have one port for both directions, redirect everything unless
// told otherwise (before 0.8), and serve nothing to the outside themselves.
func TestReadFirstIstio(t *testing.T) {
	first := Capture{
		OutboundPort: 15001, InboundPort: 15001, UID: 1337, GID: 1337,
		Interception: InterceptionRedirect, OutboundAll: true, InboundAll: true, DialsLoopback: true, CannotExclude: true,
	}
	for _, c := range []struct {
		name, image string
		args        []string
		change      func(*Capture)
	}{
		{"as of 2018", "docker.io/istio/proxy_init:0.7.1", list("-p", "15001", "-u", "1337"), func(*Capture) {}},
		{"with CIDRs", "docker.io/istio/proxy_init:0.7.1", list("-p", "15001", "-u", "1337", "-i", "10.96.0.0/12,192.168.0.0/16"), func(c *Capture) {
			c.OutboundAll, c.IncludeOutboundCIDRs = false, prefixes("10.96.0.0/12", "192.168.0.0/16")
		}},
		{"another port and user, from a registry with a port", "registry.example:5000/x/proxy_init:0.5.0", list("-p", "15010", "-u", "2000"), func(c *Capture) {
			c.OutboundPort, c.InboundPort, c.UID, c.GID = 15010, 15010, 2000, 2000
		}},
		{"a tag that tells nothing", "proxy_init:custom", list("-p", "15001", "-u", "1337"), func(*Capture) {}},
		{"1.0 lists ports", "istio/proxy_init:1.0.6", list("-p", "15001", "-u", "1337", "-m", "REDIRECT", "-i", "*", "-x", "", "-b", "9080", "-d", ""), func(c *Capture) {
			c.InboundAll, c.IncludeInboundPorts = false, []uint16{9080}
		}},
		{"1.2 has health, and 22 exempt", "istio/proxy_init:1.2.5", list("-p", "15001", "-u", "1337", "-m", "REDIRECT", "-i", "*", "-x", "", "-b", "*", "-d", "15020"), func(c *Capture) {
			c.ExcludeInboundPorts, c.OwnPorts = []uint16{15020, 22}, []uint16{15020, 15090}
		}},
		{"1.3 has two ports", "istio/proxy_init:1.3.0", list("-p", "15001", "-z", "15006", "-u", "1337", "-m", "REDIRECT", "-i", "*", "-x", "", "-b", "*", "-d", "15020"), func(c *Capture) {
			c.InboundPort, c.ExcludeInboundPorts, c.OwnPorts = 15006, []uint16{15020, 22}, []uint16{15020, 15090}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			want := first
			c.change(&want)
			got, err := ReadIstio(Input{Args: c.args, Image: c.image})
			if diff := cmp.Diff(want, got, equal); diff != "" || err != nil {
				t.Errorf("error %v (-want +got):\n%s", err, diff)
			}
		})
	}
}

// The environment cannot be edited, but a flag wins over it: after a change the program reads what was
// wanted, and nothing that the environment said besides is lost.
func TestInterfacesOfTheEnvironment(t *testing.T) {
	for _, c := range []struct {
		name, args, reroute, exclude string // the list and the variables
		wantRerouted, wantExcluded   string // what the program reads afterwards
	}{
		{"reroute by variable", "-p 1", "k6t-eth0", "", "", "k6t-eth0"},
		{"among others", "-p 1", "net1,k6t-eth0", "net2", "net1", "net2,k6t-eth0"},
		{"excluded already", "-p 1", "", "net2,k6t-eth0", "", "net2,k6t-eth0"},
		{"a flag hides the variable", "-p 1 -k k6t-eth0", "net1", "", "", "k6t-eth0"},
		{"both flags hide both", "-p 1 -k net3 -c net4", "k6t-eth0", "k6t-eth0", "net3", "net4,k6t-eth0"},
		{"nothing at all", "-p 1", "", "", "", "k6t-eth0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := Input{Args: strings.Fields(c.args), Env: map[string]string{"KUBE_VIRT_INTERFACES": c.reroute, "ISTIO_EXCLUDE_INTERFACES": c.exclude}}
			args, err := cmdline.Parse(in.Args)
			if err != nil {
				t.Fatal(err)
			}
			args = args.Within(in.Program())
			args.ExcludeInterface("k6t-eth0")
			in.Args = args.Strings()
			got, err := ReadIstio(in)
			if r, x := strings.Join(got.RerouteInterfaces, ","), strings.Join(got.ExcludeInterfaces, ","); r != c.wantRerouted || x != c.wantExcluded || err != nil {
				t.Errorf("%q reroutes %q, excludes %q, error %v; want %q and %q", in.Args, r, x, err, c.wantRerouted, c.wantExcluded)
			}
			before := args.Strings()
			args.ExcludeInterface("k6t-eth0")
			if diff := cmp.Diff(before, args.Strings()); diff != "" {
				t.Errorf("a second time it changes more (-once +twice):\n%s", diff)
			}

			args.RerouteNothing()
			in.Args = args.Strings()
			if got, err := ReadIstio(in); err != nil || len(got.RerouteInterfaces) > 0 {
				t.Errorf("%q still reroutes %q, error %v", in.Args, got.RerouteInterfaces, err)
			}

			args.Reroute("k6t-eth0")
			in.Args = args.Strings()
			got, err = ReadIstio(in)
			if r, x := strings.Join(got.RerouteInterfaces, ","), strings.Join(got.ExcludeInterfaces, ","); r != "k6t-eth0" || strings.Contains(x, "k6t-eth0") || err != nil {
				t.Errorf("%q reroutes %q, excludes %q, error %v; want it rerouted again", in.Args, r, x, err)
			}
		})
	}
	args, _ := cmdline.Parse([]string{"-p", "1"})
	args = args.Within(Input{CNI: true, Env: map[string]string{"KUBE_VIRT_INTERFACES": "k6t-eth0"}}.Program())
	args.ExcludeInterface("k6t-eth0")
	if got := strings.Join(args.Strings(), " "); strings.Contains(got, string(cmdline.FlagRerouteInterfaces)) {
		t.Errorf("%s: istio-cni does not read the variable", got)
	}
}

// Demo shows what MeshVirt changes for a virtual machine in a mesh, from the pod's creation to its
// packets: a real API server admits a real virt-launcher pod through Istio's injector (as recorded)
// and MeshVirt's webhook; the pod's network then runs as admitted, with a real guest; and each flow is
// followed hop by hop. It does so without MeshVirt (mode off) and in the modes rules and nat-proxy.
//
// It ends with code 1 if a mode does not keep what it promises. It needs root, and what
// `tools/setup.sh apt guest controlplane helm` provides.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/go-logr/logr"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/meshvirt/meshvirt/pkg/plan"
	"github.com/meshvirt/meshvirt/pkg/templates"
	"github.com/meshvirt/meshvirt/test/e2e/apiserver"
	"github.com/meshvirt/meshvirt/test/e2e/netlab"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/container"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/netns"
	"github.com/meshvirt/meshvirt/test/e2e/netlab/vm"
)

// What the demo shows. The pod lists its ports, has both IP families and Istio's DNS capture; KubeVirt's
// rules are those for such a pod.
const (
	kubevirtRelease = "v1.9.0"
	vmCase          = "masquerade-istio-ports"
	istioRelease    = "1.31.0-rc.0"
	istioSetup      = "dns-dualstack"
	kubevirtRules   = kubevirtRelease + "-istio-ports-22-80-dual"
)

var modes = []plan.Mode{plan.Off, plan.Rules, plan.NATProxy}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "demo: %v\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out io.Writer) (err error) {
	if err := netns.Check(); err != nil {
		return err
	}
	ctrllog.SetLogger(logr.Discard()) // what goes wrong comes as errors
	p := newPrinter(out)
	dir, err := os.MkdirTemp("", "meshvirt-demo-")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("%w\nlogs are in %s", err, dir)
			return
		}
		err = os.RemoveAll(dir)
	}()
	p.line("MeshVirt %s. A VM of KubeVirt %s beside a sidecar of Istio %s, both IP families.", plan.Release, kubevirtRelease, istioRelease)
	p.line("")

	d := &demo{printer: p}
	defer func() { err = errors.Join(err, d.close()) }()
	if err := d.start(ctx, dir); err != nil {
		return err
	}
	outcomes := map[plan.Mode][]netlab.Result{}
	for _, mode := range modes {
		if outcomes[mode], err = d.show(ctx, mode); err != nil {
			return fmt.Errorf("mode %s: %w", mode, err)
		}
	}
	p.summary(outcomes)
	return broken(outcomes)
}

// demo is what all modes share.
type demo struct {
	*printer
	cluster  *apiserver.Cluster
	injector *apiserver.Injector
	machine  *vm.VM
	image    container.Image
}

// start starts everything that is not of one pod. Logs go to dir.
func (d *demo) start(ctx context.Context, dir string) error {
	d.heading("Set-up")
	return d.steps([]step{
		{"start etcd and kube-apiserver", func() (err error) {
			d.cluster, err = apiserver.Start(dir)
			return err
		}},
		{"register Istio's injector", func() (err error) {
			d.injector, err = d.cluster.StartInjector(ctx)
			return err
		}},
		{"build, start and register MeshVirt's webhook (by its chart)", func() error {
			_, err := d.cluster.StartWebhook(ctx)
			return err
		}},
		{"build MeshVirt's data plane", func() error {
			d.image.Files = map[string]*os.File{}
			for path, pkg := range map[string]string{templates.RulesProgram: "cmd/rules", templates.ProxyProgram: "cmd/proxy"} {
				program, err := netlab.Build(ctx, pkg)
				if err != nil {
					return err
				}
				d.image.Files[path] = program
			}
			return nil
		}},
		{"boot the virtual machine", func() error {
			program, err := netlab.Build(ctx, "test/e2e/netlab/labnode")
			if err != nil {
				return err
			}
			d.machine, err = vm.Start(ctx, program)
			return err
		}},
	})
}

func (d *demo) close() error {
	var errs []error
	if d.machine != nil {
		errs = append(errs, d.machine.Close())
	}
	if d.cluster != nil {
		errs = append(errs, d.cluster.Stop())
	}
	return errors.Join(errs...)
}

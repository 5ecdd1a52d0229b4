// Package node runs a whole cluster of one node: etcd, kube-apiserver, its controllers, scheduler,
// kube-proxy, kubelet and containerd, with MeshVirt installed by helm, and Istio's injector as
// recorded. Pods are admitted and really run; KubeVirt's and Istio's programs in them are stand-ins.
//
//	10.200.0.1 node0 (API server, kubelet)    cni0 10.201.0.1 ── pods 10.201.0.0/24    Services 10.202.0.0/24
//
// All of it is in namespaces of one inner process, and ends with it.
package node

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvirt/meshvirt/test/e2e/apiserver"
	"github.com/meshvirt/meshvirt/tools"
)

// patience bounds every wait in this package. Most take a second or two on an idle machine.
const patience = 3 * time.Minute

// poll is the pause between two looks at a condition that is waited for.
const poll = 100 * time.Millisecond

// Name is the node's.
const Name = "node1"

var (
	nodeIP   = netip.MustParseAddr("10.200.0.1")
	pods     = netip.MustParsePrefix("10.201.0.0/24")
	services = netip.MustParsePrefix("10.202.0.0/24")
)

// sandboxImage is what a pod's first container is made of.
const sandboxImage = "registry.k8s.io/pause:3.10"

// Cluster is a running cluster. Its Client is an administrator's.
type Cluster struct {
	*apiserver.Cluster
	dir, cgroup, programs string
	admin                 string // kubeconfig
	processes             []*exec.Cmd
}

// Start starts a cluster in a process that Isolate made, with images from archives of the directory,
// and returns when the node is ready. Files and logs go to the directory.
func Start(ctx context.Context, dir, cgroup string) (_ *Cluster, err error) {
	if err := enter(); err != nil {
		return nil, err
	}
	c := &Cluster{dir: dir, cgroup: cgroup}
	if c.programs, err = tools.Node(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Stop())
		}
	}()
	if err := network(ctx); err != nil {
		return nil, err
	}
	if err := c.startContainerd(ctx); err != nil {
		return nil, err
	}
	server := filepath.Join(dir, "control-plane")
	if err := os.MkdirAll(server, 0o755); err != nil {
		return nil, err
	}
	if c.Cluster, err = apiserver.StartNetworked(server, apiserver.Network{Server: nodeIP, Services: services}); err != nil {
		return nil, err
	}
	if c.admin, err = c.Kubeconfig("admin", "system:masters"); err != nil {
		return nil, err
	}
	if err := errors.Join(c.startControllers(), c.startKubelet(ctx)); err != nil {
		return nil, err
	}
	return c, nil
}

// network sets up the namespace as a machine with one network card.
func network(ctx context.Context) error {
	for _, args := range []string{
		"link set lo up",
		"link add node0 type bridge",
		"addr add " + nodeIP.String() + "/24 dev node0",
		"link set node0 up",
		// There has to be some route to Services' addresses, before kube-proxy's rules translate them.
		"route add default via " + nodeIP.String(),
	} {
		if _, err := command(ctx, "ip", strings.Fields(args)...); err != nil {
			return err
		}
	}
	return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0)
}

// startContainerd starts containerd and gives it the images.
func (c *Cluster) startContainerd(ctx context.Context) error {
	_, err := c.write("cni/10-bridge.conflist", `{"cniVersion": "0.4.0", "name": "pods", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true, "ipam": {
    "type": "host-local", "dataDir": "@DIR@/ipam", "ranges": [[{"subnet": "`+pods.String()+`"}]], "routes": [{"dst": "0.0.0.0/0"}]}}]}`)
	if err != nil {
		return err
	}
	config, err := c.write("containerd.toml", `version = 2
root = "@DIR@/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.aufs"]
[plugins."io.containerd.internal.v1.opt"]
  path = "@DIR@/opt"
[plugins."io.containerd.grpc.v1.cri"]
  # Without CAP_SYS_RESOURCE, as in a container, runc may not lower oom_score_adj.
  restrict_oom_score_adj = true
  sandbox_image = "`+sandboxImage+`"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "@DIR@/cni"
`)
	if err != nil {
		return err
	}
	if err := c.start("containerd", "-c", config); err != nil {
		return err
	}
	err = await(ctx, "containerd answers", func() (bool, error) {
		_, err := c.ctr(ctx, "version")
		return err == nil, nil
	})
	if err != nil {
		return err
	}
	for _, archive := range archives {
		if _, err := c.ctr(ctx, "images", "import", filepath.Join(c.dir, archive)); err != nil {
			return err
		}
	}
	for _, name := range standInNames {
		if _, err := c.ctr(ctx, "images", "tag", standIn, name); err != nil {
			return err
		}
	}
	return nil
}

// ctr talks to containerd about what is Kubernetes'.
func (c *Cluster) ctr(ctx context.Context, args ...string) (string, error) {
	return command(ctx, "ctr", append([]string{"-n", "k8s.io"}, args...)...)
}

func (c *Cluster) startControllers() error {
	manager, err := c.Kubeconfig("system:kube-controller-manager")
	if err != nil {
		return err
	}
	scheduler, err := c.Kubeconfig("system:kube-scheduler")
	if err != nil {
		return err
	}
	proxy, err := c.Kubeconfig("system:kube-proxy")
	if err != nil {
		return err
	}
	config, err := c.write("kube-proxy.yaml", `apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection: {kubeconfig: "`+proxy+`"}
mode: nftables
clusterCIDR: `+pods.String()+`
hostnameOverride: `+Name+`
bindAddress: `+nodeIP.String()+`
# What is the whole machine's stays as it is.
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
`)
	if err != nil {
		return err
	}
	return errors.Join(
		c.start("kube-controller-manager", "--kubeconfig="+manager, "--leader-elect=false", "--bind-address=127.0.0.1", "--use-service-account-credentials=true",
			"--service-account-private-key-file="+c.ServiceAccountKey(), "--root-ca-file="+c.CA()),
		c.start("kube-scheduler", "--kubeconfig="+scheduler, "--leader-elect=false", "--bind-address=127.0.0.1"),
		c.start("kube-proxy", "--config="+config))
}

// startKubelet returns when the node is ready, with what KubeVirt adds to it.
func (c *Cluster) startKubelet(ctx context.Context) error {
	kubeconfig, err := c.Kubeconfig("system:node:"+Name, "system:nodes")
	if err != nil {
		return err
	}
	config, err := c.write("kubelet.yaml", `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: `+nodeIP.String()+`
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
cgroupDriver: cgroupfs
cgroupRoot: /`+c.cgroup+`
failCgroupV1: false
failSwapOn: false
enforceNodeAllocatable: []
makeIPTablesUtilChains: false
evictionHard: {nodefs.available: "1%", imagefs.available: "1%", memory.available: "50Mi"}
imageGCHighThresholdPercent: 100
syncFrequency: 10s # a minute is the default: how often a pod is given what has changed of its Secrets
maxPods: 250
clusterDNS: [`+services.Addr().Next().String()+`] # nobody asks
clusterDomain: cluster.local
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
podLogsDir: @DIR@/podlogs
volumePluginDir: @DIR@/volume-plugins
`)
	if err != nil {
		return err
	}
	err = c.start("kubelet", "--config="+config, "--kubeconfig="+kubeconfig, "--root-dir="+filepath.Join(c.dir, "kubelet"), "--cert-dir="+filepath.Join(c.dir, "kubelet-certs"),
		"--hostname-override="+Name, "--node-ip="+nodeIP.String(), "--node-labels=kubevirt.io/schedulable=true,machine-type.node.kubevirt.io/q35=true")
	if err != nil {
		return err
	}
	node := &corev1.Node{}
	err = await(ctx, "node "+Name+" is ready", func() (bool, error) {
		err := c.Client.Get(ctx, client.ObjectKey{Name: Name}, node)
		for _, condition := range node.Status.Conditions {
			if condition.Type == corev1.NodeReady && condition.Status == corev1.ConditionTrue {
				return true, nil
			}
		}
		return false, client.IgnoreNotFound(err)
	})
	if err != nil {
		return err
	}
	// Virt-handler's device plugin has these.
	devices := `{"status": {"capacity": {"devices.kubevirt.io/kvm": "1k", "devices.kubevirt.io/tun": "1k", "devices.kubevirt.io/vhost-net": "1k"}}}`
	return c.Client.Status().Patch(ctx, node, client.RawPatch("application/strategic-merge-patch+json", []byte(devices)))
}

// start starts a program of a cluster or of this machine, with a log.
func (c *Cluster) start(program string, args ...string) error {
	path := filepath.Join(c.programs, program)
	if _, err := os.Stat(path); err != nil {
		if path, err = exec.LookPath(program); err != nil {
			return err
		}
	}
	log, err := os.Create(filepath.Join(c.dir, program+".log"))
	if err != nil {
		return err
	}
	defer log.Close()
	p := exec.Command(path, args...)
	p.Stdout, p.Stderr = log, log
	if err := p.Start(); err != nil {
		return err
	}
	c.processes = append(c.processes, p)
	return nil
}

// write writes a file of the cluster's directory, for which @DIR@ stands in the text.
func (c *Cluster) write(name, text string) (file string, err error) {
	file = filepath.Join(c.dir, name)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return "", err
	}
	return file, os.WriteFile(file, []byte(strings.ReplaceAll(text, "@DIR@", c.dir)), 0o600)
}

// Stop ends the control plane and the node's programs. Containers end with the namespaces.
func (c *Cluster) Stop() error {
	for _, p := range c.processes {
		_ = p.Process.Signal(syscall.SIGKILL)
		_ = p.Wait()
	}
	if c.Cluster == nil {
		return nil
	}
	return c.Cluster.Stop()
}

// await calls check until it is true or an error.
func await(ctx context.Context, what string, check func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		ok, err := check()
		if ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not after %s: %s: %w", patience, what, ctx.Err())
		case <-time.After(poll):
		}
	}
}

// Kubectl runs kubectl as an administrator and gives its output.
func (c *Cluster) Kubectl(ctx context.Context, args ...string) (string, error) {
	return command(ctx, filepath.Join(c.programs, "kubectl"), append([]string{"--kubeconfig=" + c.admin}, args...)...)
}

// Helm runs helm as an administrator and gives its output.
func (c *Cluster) Helm(ctx context.Context, args ...string) (string, error) {
	helm, err := tools.Helm()
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, helm, append([]string{"--kubeconfig=" + c.admin}, args...)...)
	home := filepath.Join(c.dir, "helm")
	cmd.Env = append(os.Environ(), "HELM_CACHE_HOME="+home, "HELM_CONFIG_HOME="+home, "HELM_DATA_HOME="+home)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("helm %s: %w\n%s", args[0], err, out)
	}
	return string(out), nil
}

package apiserver

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"sigs.k8s.io/controller-runtime/pkg/envtest"

	"github.com/meshvirt/meshvirt/tools"
)

// Network says where a cluster with nodes is.
type Network struct {
	// Server is the address at which kube-apiserver serves, on port 6443.
	Server netip.Addr
	// Services is the range of the Services' addresses; the first is kube-apiserver's own.
	Services netip.Prefix
}

// StartNetworked is Start for a cluster with nodes, controllers and pods that ask the API server.
func StartNetworked(dir string, n Network) (*Cluster, error) {
	programs, err := tools.ControlPlane()
	if err != nil {
		return nil, err
	}
	return start(dir, filepath.Join(programs, "kube-apiserver"), filepath.Join(programs, "etcd"), func(c *Cluster, server *envtest.APIServer) error {
		server.Address, server.Port = n.Server.String(), "6443"
		server.CA = c.authority.pem
		server.Configure().
			Set("authorization-mode", "Node,RBAC").
			Set("advertise-address", n.Server.String()).
			Set("service-cluster-ip-range", n.Services.String()).
			Set("allow-privileged", "true").
			Set("service-account-issuer", "https://kubernetes.default.svc").
			Set("kubelet-preferred-address-types", "InternalIP")

		// envtest takes certificates that are there. Its own is not for the address of the Service.
		crt, key, err := c.authority.issue(n.Server.String(), n.Services.Addr().Next().String(), "kubernetes.default.svc")
		if err != nil {
			return err
		}
		accountsCrt, accountsKey, err := c.authority.issue()
		if err != nil {
			return err
		}
		for name, content := range map[string][]byte{
			"apiserver.crt": crt, "apiserver.key": key,
			"sa-signer.crt": accountsCrt, "sa-signer.key": accountsKey,
			"ca.crt": c.authority.pem,
		} {
			err = errors.Join(err, os.WriteFile(filepath.Join(server.CertDir, name), content, 0o600))
		}
		return err
	})
}

// CA is the file with the certificate of the API server's authority, for pods; of a cluster with nodes.
func (c *Cluster) CA() string {
	return filepath.Join(c.env.ControlPlane.GetAPIServer().CertDir, "ca.crt")
}

// ServiceAccountKey is the file with the key that signs tokens of service accounts.
func (c *Cluster) ServiceAccountKey() string {
	return filepath.Join(c.env.ControlPlane.GetAPIServer().CertDir, "sa-signer.key")
}

// Issue makes a serving certificate for the hosts, names or addresses, and gives it, its key and the
// certificate of the CA that signed it, as PEM.
func (c *Cluster) Issue(hosts ...string) (crt, key, ca []byte, err error) {
	crt, key, err = c.authority.issue(hosts...)
	return crt, key, c.authority.pem, err
}

// Kubeconfig writes a file for a user of the API server, and gives its name.
func (c *Cluster) Kubeconfig(user string, groups ...string) (file string, err error) {
	u, err := c.env.AddUser(envtest.User{Name: user, Groups: groups}, nil)
	if err != nil {
		return "", fmt.Errorf("add user %s: %w", user, err)
	}
	config, err := u.KubeConfig()
	if err != nil {
		return "", fmt.Errorf("kubeconfig of user %s: %w", user, err)
	}
	file = filepath.Join(c.dir, strings.ReplaceAll(user, ":", "-")+".kubeconfig")
	return file, os.WriteFile(file, config, 0o600)
}

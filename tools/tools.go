// Package tools finds what tools/setup.sh has put into the cache, for tests and the demo.
package tools

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// module is the first line of this repository's go.mod.
const module = "module github.com/meshvirt/meshvirt\n"

// Root gives the top directory of this repository: the nearest above the working directory.
func Root() (string, error) {
	start, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for dir := start; ; dir = filepath.Dir(dir) {
		b, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && strings.HasPrefix(string(b), module) {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("%s is not inside the meshvirt repository", start)
		}
	}
}

// Cache gives the directory that setup.sh writes to; it need not exist.
func Cache() (string, error) {
	if dir := os.Getenv("MESHVIRT_CACHE"); dir != "" {
		return dir, nil
	}
	if dir := os.Getenv("XDG_CACHE_HOME"); dir != "" {
		return filepath.Join(dir, "meshvirt"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(home, ".cache", "meshvirt"), nil
}

// ControlPlane gives the directory of the programs kube-apiserver and etcd: that of the environment
// variable KUBEBUILDER_ASSETS, as elsewhere in this ecosystem, or the cache's.
func ControlPlane() (string, error) {
	if dir := os.Getenv("KUBEBUILDER_ASSETS"); dir != "" {
		return dir, nil
	}
	return madeOfControlPlane("controlplane")
}

// Node gives the directory of the programs that make a node and a cluster of it: kubelet,
// kube-controller-manager, kube-scheduler, kube-proxy, and kubectl.
func Node() (string, error) { return madeOfControlPlane("node") }

// madeOfControlPlane gives the directory of a task that builds from the module in tools/controlplane.
func madeOfControlPlane(task string) (string, error) {
	hash, err := hash("tools/controlplane/go.mod", "tools/controlplane/go.sum")
	if err != nil {
		return "", err
	}
	return made(task, task+"-"+hash)
}

// OldestAPIServer gives the path of the kube-apiserver of the oldest Kubernetes release that the chart
// installs on. It goes with the etcd of ControlPlane.
func OldestAPIServer() (string, error) {
	hash, err := hash("tools/controlplane-oldest/go.mod", "tools/controlplane-oldest/go.sum")
	if err != nil {
		return "", err
	}
	dir, err := made("oldest", "oldest-"+hash)
	return filepath.Join(dir, "kube-apiserver"), err
}

// CertManager gives the path of a program that runs cert-manager's controllers, and the directory of its CRDs.
func CertManager() (program, crds string, err error) {
	hash, err := hash("tools/certmanager/main.go", "tools/certmanager/go.mod", "tools/certmanager/go.sum")
	if err != nil {
		return "", "", err
	}
	dir, err := made("certmanager", "certmanager-"+hash)
	return filepath.Join(dir, "certmanager"), filepath.Join(dir, "crds"), err
}

// Helm gives the path of the program helm.
func Helm() (string, error) {
	version, err := version("helm")
	if err != nil {
		return "", err
	}
	dir, err := made("helm", "helm-"+version)
	return filepath.Join(dir, "helm"), err
}

// Kubeconform gives the path of the program kubeconform and the directory of its schemas.
func Kubeconform() (program, schemas string, err error) {
	version, err := version("kubeconform")
	if err != nil {
		return "", "", err
	}
	hash, err := hash("tools/schemas/main.go", "tools/controlplane/go.mod")
	if err != nil {
		return "", "", err
	}
	dir, err := made("kubeconform", "kubeconform-"+version+"-"+hash)
	return filepath.Join(dir, "kubeconform"), filepath.Join(dir, "schemas"), err
}

// Passt gives the command line of Debian 13's passt, which runs by its own C library, without arguments.
func Passt() ([]string, error) {
	version, err := version("passt")
	if err != nil {
		return nil, err
	}
	dir, err := made("passt", "passt-"+version)
	lib := filepath.Join(dir, "lib")
	return []string{filepath.Join(lib, "ld-linux-x86-64.so.2"), "--library-path", lib, filepath.Join(dir, "passt")}, err
}

// version reads the version of a program from setup.sh.
func version(program string) (string, error) {
	root, err := Root()
	if err != nil {
		return "", err
	}
	script, err := os.ReadFile(filepath.Join(root, "tools", "setup.sh"))
	if err != nil {
		return "", err
	}
	found := regexp.MustCompile(`(?m)^` + program + `_version=(\S+)$`).FindSubmatch(script)
	if found == nil {
		return "", fmt.Errorf("tools/setup.sh names no %s_version", program)
	}
	return string(found[1]), nil
}

// hash gives what setup.sh names a directory by that is made from these files of the repository.
func hash(files ...string) (string, error) {
	root, err := Root()
	if err != nil {
		return "", err
	}
	hash := sha256.New()
	for _, file := range files {
		b, err := os.ReadFile(filepath.Join(root, file))
		if err != nil {
			return "", err
		}
		hash.Write(b)
	}
	return fmt.Sprintf("%x", hash.Sum(nil)[:8]), nil
}

// Uses makes the result of the running test depend on the files below directories of this repository.
// Otherwise `go test` repeats an old result although they have changed: it only sees what the test
// itself opens, not what programs read that the test starts.
func Uses(directories ...string) error {
	root, err := Root()
	if err != nil {
		return err
	}
	for _, dir := range directories {
		err := filepath.WalkDir(filepath.Join(root, dir), func(path string, _ os.DirEntry, err error) error {
			if err == nil {
				_, err = os.Stat(path)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// made gives the directory of the cache that a task of setup.sh makes.
func made(task, name string) (string, error) {
	cache, err := Cache()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, name)
	if _, err := os.Stat(dir); err != nil {
		return "", fmt.Errorf("%w: run tools/setup.sh %s", err, task)
	}
	return dir, nil
}

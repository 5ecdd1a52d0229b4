package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/meshvirt/meshvirt/tools"
)

// standIn is the name of the stand-ins' image in its archive.
const standIn = "localhost/standin:test"

// standInNames are the images that the stand-ins' image stands for: pods name them as recorded.
var standInNames = []string{
	"docker.io/istio/proxyv2:1.31.0-rc.0",
	"quay.io/kubevirt/virt-launcher:v1.9.0",
	sandboxImage,
}

// archives are the files of a directory that Build fills.
var archives = []string{"webhook.tar", "dataplane.tar", "standin.tar", "certmanager.tar"}

// Build makes MeshVirt's images, as `make image` does, and those of the stand-ins and of cert-manager, as archives in the
// directory, and the plugin for kubectl in its subdirectory bin. It needs what it takes to compile, so
// call it before there is no network.
func Build(ctx context.Context, dir string) error {
	root, err := tools.Root()
	if err != nil {
		return err
	}
	if _, err := command(ctx, filepath.Join(root, "tools", "image.sh"), "-a", "amd64", "-o", dir); err != nil {
		return err
	}
	if err := build(ctx, "cmd/meshvirt", filepath.Join(dir, "bin", "kubectl-meshvirt")); err != nil {
		return err
	}
	files := filepath.Join(dir, "standin", "root")
	if err := buildStandIn(ctx, files); err != nil {
		return fmt.Errorf("build stand-ins: %w", err)
	}
	certManager, _, err := tools.CertManager()
	if err != nil {
		return err
	}
	store := filepath.Join(dir, "storage")
	builder := func(args ...string) error {
		_, err := command(ctx, "buildah", append([]string{"--root", store, "--runroot", store + "-run", "--storage-driver", "vfs"}, args...)...)
		return err
	}
	for name, from := range map[string]string{"standin": filepath.Dir(files), "certmanager": filepath.Dir(certManager)} {
		image := "localhost/" + name + ":test"
		err = errors.Join(err,
			builder("build", "--quiet", "-t", image, "--target", name, "-f", filepath.Join(root, "test/e2e/node/Dockerfile"), from),
			builder("push", "--quiet", image, "oci-archive:"+filepath.Join(dir, name+".tar")+":"+image))
	}
	return errors.Join(err, os.RemoveAll(store), os.RemoveAll(store+"-run"))
}

// buildStandIn fills the root of the stand-ins' image: one program by several names, and this machine's
// iptables for Istio's rules.
func buildStandIn(ctx context.Context, root string) error {
	bin := filepath.Join(root, "usr/local/bin")
	for _, dir := range []string{bin, filepath.Join(root, "usr/bin"), filepath.Join(root, "usr/sbin")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if err := build(ctx, "test/e2e/node/standin", filepath.Join(bin, "pilot-agent")); err != nil {
		return err
	}
	for _, name := range []string{"virt-launcher-monitor", "virt-tail"} {
		if err := os.Symlink("../local/bin/pilot-agent", filepath.Join(root, "usr/bin", name)); err != nil {
			return err
		}
	}
	return copyIPTables(ctx, root)
}

// build compiles a program of this module.
func build(ctx context.Context, pkg, file string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", file, "github.com/meshvirt/meshvirt/"+pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", pkg, err, out)
	}
	return nil
}

// library finds the files in what ldd says.
var library = regexp.MustCompile(`(/\S+) \(0x`)

// copyIPTables copies iptables-nft-restore with its libraries and extensions.
func copyIPTables(ctx context.Context, root string) error {
	const restore = "/usr/sbin/iptables-nft-restore" // a link to a program that does what its name says
	program, err := filepath.EvalSymlinks(restore)
	if err != nil {
		return err
	}
	needs, err := command(ctx, "ldd", program)
	if err != nil {
		return err
	}
	copies := map[string]string{program: restore}
	for _, found := range library.FindAllStringSubmatch(needs, -1) {
		copies[found[1]] = found[1]
	}
	extensions, err := filepath.Glob("/usr/lib/*/xtables/*.so")
	if err != nil || len(extensions) == 0 {
		return errors.Join(err, errors.New("no extensions of iptables in /usr/lib/*/xtables"))
	}
	for _, file := range extensions {
		copies[file] = file
	}
	for from, to := range copies {
		b, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		to = filepath.Join(root, to)
		if err := errors.Join(os.MkdirAll(filepath.Dir(to), 0o755), os.WriteFile(to, b, 0o755)); err != nil {
			return err
		}
	}
	return nil
}

// command runs a program of this machine to its end and gives its output, which an error has as well.
func command(ctx context.Context, program string, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, program, args...).CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("%s %s: %w\n%s", filepath.Base(program), strings.Join(args, " "), err, out)
	}
	return string(out), nil
}

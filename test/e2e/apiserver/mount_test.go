package apiserver

import (
	"context"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// mountSecret keeps tls.crt and tls.key of the Secret in a new directory until the test ends, as a kubelet mounts it, and
// returns once they are there. Changes come lag later: a kubelet takes up to a minute or two.
func mountSecret(t *testing.T, c *Cluster, name string, lag time.Duration) (dir string) {
	t.Helper()
	dir = t.TempDir()
	ctx, cancel := context.WithCancel(context.Background())
	first, ended := make(chan struct{}), make(chan struct{})
	t.Cleanup(func() { cancel(); <-ended })
	go func() {
		defer close(ended)
		var mounted map[string][]byte
		for ; ctx.Err() == nil; time.Sleep(poll) {
			secret := &corev1.Secret{}
			// A Secret that is away leaves the files as they are.
			if err := c.Client.Get(ctx, client.ObjectKey{Namespace: WebhookNamespace, Name: name}, secret); err != nil {
				continue
			}
			files := map[string][]byte{}
			for _, key := range []string{corev1.TLSCertKey, corev1.TLSPrivateKeyKey} {
				files[key] = secret.Data[key]
			}
			if len(files[corev1.TLSCertKey]) == 0 || reflect.DeepEqual(files, mounted) {
				continue
			}
			if mounted != nil {
				select {
				case <-ctx.Done():
				case <-time.After(lag):
				}
			}
			if err := writeAtomically(dir, files); err != nil {
				t.Errorf("mount Secret %s: %v", name, err)
				return
			}
			if mounted == nil {
				close(first)
			}
			mounted = files
		}
	}()
	select {
	case <-first:
	case <-time.After(patience):
		t.Fatalf("there is no Secret %s after %s", name, patience)
	}
	return dir
}

// writeAtomically puts the files into the directory by the steps of a kubelet: each is a link into ..data, a link
// to a directory that is never written to again, and that link is what changes.
func writeAtomically(dir string, files map[string][]byte) error {
	const data = "..data"
	fresh, err := os.MkdirTemp(dir, "..")
	if err != nil {
		return err
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(fresh, name), content, 0o640); err != nil {
			return err
		}
	}
	old, _ := os.Readlink(filepath.Join(dir, data))
	next := filepath.Join(dir, "..data_tmp")
	if err := os.Symlink(filepath.Base(fresh), next); err != nil {
		return err
	}
	if err := os.Rename(next, filepath.Join(dir, data)); err != nil {
		return err
	}
	if old != "" {
		return os.RemoveAll(filepath.Join(dir, old))
	}
	for name := range files {
		if err := os.Symlink(filepath.Join(data, name), filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

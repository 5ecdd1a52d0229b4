// Package corpus hands the recorded pods beside it to tests of any package.
package corpus

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

// Sidecar is a masquerade VM's pod, which lists the ports 22 and 80, beside a native Istio sidecar.
const Sidecar = "pods/v1.9.0/masquerade-istio-ports/injected-1.31.0-rc.0-native.yaml"

// Pods are the names of all pods below a directory such as "pods", injected or not.
func Pods(t testing.TB, below string) []string {
	t.Helper()
	var all []string
	err := fs.WalkDir(os.DirFS(root(t)), below, func(name string, _ fs.DirEntry, err error) error {
		if base := path.Base(name); err == nil && path.Ext(base) == ".yaml" && base != "vmi.yaml" {
			all = append(all, name)
		}
		return err
	})
	if err != nil || len(all) == 0 {
		t.Fatalf("%d pods below %s: %v", len(all), below, err)
	}
	return all
}

// JSON is the file of that name, in JSON.
func JSON(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root(t), name))
	if err != nil {
		t.Fatal(err)
	}
	if b, err = yaml.YAMLToJSON(b); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return b
}

// Pod is the pod of that name.
func Pod(t testing.TB, name string) *corev1.Pod {
	t.Helper()
	pod := &corev1.Pod{}
	if err := json.Unmarshal(JSON(t, name), pod); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return pod
}

// VMI is the VirtualMachineInstance of the pod of that name.
func VMI(t testing.TB, pod string) []byte {
	t.Helper()
	return JSON(t, path.Join(path.Dir(pod), "vmi.yaml"))
}

// Review is what the API server sends for the creation of a pod.
func Review(pod []byte) []byte {
	return fmt.Appendf(nil, `{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":{"uid":"705ab4f5-6393-11e8-b7cc-42010a800002",
		"kind":{"group":"","version":"v1","kind":"Pod"},"resource":{"group":"","version":"v1","resource":"pods"},
		"requestKind":{"group":"","version":"v1","kind":"Pod"},"requestResource":{"group":"","version":"v1","resource":"pods"},
		"namespace":"mesh","operation":"CREATE","userInfo":{"username":"system:serviceaccount:kubevirt:kubevirt-controller"},
		"object":%s,"oldObject":null,"dryRun":false,"options":{"kind":"CreateOptions","apiVersion":"meta.k8s.io/v1"}}}`, pod)
}

// root looks for the module's directory from that of the tests upwards.
func root(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for ; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return filepath.Join(dir, "test/corpus")
		}
		if dir == filepath.Dir(dir) {
			t.Fatal("no go.mod above the tests")
		}
	}
}

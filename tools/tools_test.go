package tools

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// What setup.sh prints is where Go code looks.
func TestSetupAndGoAgree(t *testing.T) {
	root, err := Root()
	if err != nil {
		t.Fatal(err)
	}
	controlPlane, err := ControlPlane()
	if err != nil {
		t.Fatal(err)
	}
	node, err := Node()
	if err != nil {
		t.Fatal(err)
	}
	helm, err := Helm()
	if err != nil {
		t.Fatal(err)
	}
	kubeconform, _, err := Kubeconform()
	if err != nil {
		t.Fatal(err)
	}
	oldest, err := OldestAPIServer()
	if err != nil {
		t.Fatal(err)
	}
	passt, err := Passt()
	if err != nil {
		t.Fatal(err)
	}
	certManager, _, err := CertManager()
	if err != nil {
		t.Fatal(err)
	}
	for task, want := range map[string]string{
		"controlplane": controlPlane, "oldest": filepath.Dir(oldest), "certmanager": filepath.Dir(certManager), "node": node,
		"helm": filepath.Dir(helm), "kubeconform": filepath.Dir(kubeconform), "passt": filepath.Dir(passt[len(passt)-1]),
	} {
		if task == "controlplane" && os.Getenv("KUBEBUILDER_ASSETS") != "" {
			continue // given from outside, so setup.sh has no say
		}
		out, err := exec.Command(filepath.Join(root, "tools", "setup.sh"), task).Output()
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(strings.TrimSpace(string(out)), "\n")
		if got := lines[len(lines)-1]; got != want {
			t.Errorf("setup.sh %s printed %s at last, want %s", task, got, want)
		}
	}
}

func TestMissingNamesTheCommand(t *testing.T) {
	t.Setenv("KUBEBUILDER_ASSETS", "")
	t.Setenv("MESHVIRT_CACHE", t.TempDir())
	_, err := ControlPlane()
	if err == nil || !strings.Contains(err.Error(), "run tools/setup.sh controlplane") {
		t.Errorf("control plane: got error %v, want one that names the command", err)
	}
	_, err = Node()
	if err == nil || !strings.Contains(err.Error(), "run tools/setup.sh node") {
		t.Errorf("node: got error %v, want one that names the command", err)
	}
	_, err = Helm()
	if err == nil || !strings.Contains(err.Error(), "run tools/setup.sh helm") {
		t.Errorf("helm: got error %v, want one that names the command", err)
	}
}

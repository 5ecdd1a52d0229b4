package apiserver

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"

	admissionregistration "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	yamlstream "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"

	"github.com/meshvirt/meshvirt/tools"
)

// WebhookNamespace is the namespace that the chart is rendered for.
const WebhookNamespace = "meshvirt-system"

// chart is the part of the rendered chart that admission depends on.
type chart struct {
	config *admissionregistration.MutatingWebhookConfiguration
	// args of the webhook's container
	args []string
}

// render gives that part of what template renders.
func (c *Cluster) render(values []string) (*chart, error) {
	documents, err := c.template(values)
	if err != nil {
		return nil, err
	}
	found := &chart{}
	for _, document := range documents {
		var kind metav1.TypeMeta
		if err := yaml.Unmarshal(document, &kind); err != nil {
			return nil, fmt.Errorf("read the rendered chart: %w", err)
		}
		switch kind.Kind {
		case "MutatingWebhookConfiguration":
			found.config = &admissionregistration.MutatingWebhookConfiguration{}
			if err := yaml.UnmarshalStrict(document, found.config); err != nil {
				return nil, fmt.Errorf("read the rendered %s: %w", kind.Kind, err)
			}
		case "Deployment":
			var d appsv1.Deployment
			if err := yaml.UnmarshalStrict(document, &d); err != nil {
				return nil, fmt.Errorf("read the rendered %s: %w", kind.Kind, err)
			}
			found.args = d.Spec.Template.Spec.Containers[0].Args
		}
	}
	if found.config == nil || found.args == nil {
		return nil, errors.New("the chart renders no MutatingWebhookConfiguration or no Deployment with arguments")
	}
	return found, nil
}

// template runs `helm template` on the chart, with the CA of c as the user's own and values for --set.
// It gives the YAML documents.
func (c *Cluster) template(values []string) ([][]byte, error) {
	root, err := tools.Root()
	if err != nil {
		return nil, err
	}
	helm, err := tools.Helm()
	if err != nil {
		return nil, err
	}
	ca := filepath.Join(c.dir, "ca.crt")
	if err := os.WriteFile(ca, c.authority.pem, 0o600); err != nil {
		return nil, err
	}
	args := []string{
		"template", "meshvirt", filepath.Join(root, "charts", "meshvirt"), "--namespace=" + WebhookNamespace,
		"--kube-version=" + c.Version, "--set=webhook.certificateSecret=meshvirt-tls", "--set-file=webhook.caBundle=" + ca,
	}
	for _, v := range values {
		args = append(args, "--set="+v)
	}
	out, err := exec.Command(helm, args...).Output()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return nil, fmt.Errorf("render the chart: %w\n%s", err, exit.Stderr)
	} else if err != nil {
		return nil, fmt.Errorf("render the chart: %w", err)
	}
	var all [][]byte
	for documents := yamlstream.NewYAMLReader(bufio.NewReader(bytes.NewReader(out))); ; {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			return all, nil
		} else if err != nil {
			return nil, fmt.Errorf("read the rendered chart: %w", err)
		}
		all = append(all, document)
	}
}

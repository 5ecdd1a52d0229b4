package main

import (
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"helm.sh/helm/v3/pkg/chart"
	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/yaml"

	"github.com/meshvirt/meshvirt/pkg/plan"
)

// chartValues are the values that a fuzzer chooses, as in the chart's values.yaml.
type chartValues struct {
	Replicas   int    `json:"replicas"`
	Image      images `json:"image"`
	DataPlane  any    `json:"dataPlane,omitempty"` // as in the field's name, in YAML
	Mode       string `json:"defaultMode"`
	Webhook    hook   `json:"webhook"`
	Manager    enable `json:"certManager"`
	Priority   string `json:"priorityClassName"`
	PodLabels  strs   `json:"podLabels"`
	Annotation strs   `json:"podAnnotations"`
	Nodes      strs   `json:"nodeSelector"`
}

type (
	strs   map[string]string
	enable struct {
		Enabled bool `json:"enabled"`
	}
	images struct {
		Webhook     image    `json:"webhook"`
		DataPlane   image    `json:"dataPlane"`
		PullSecrets []string `json:"pullSecrets"`
	}
	image struct {
		Registry   string `json:"registry"`
		Repository string `json:"repository"`
		Tag        string `json:"tag"`
		Digest     string `json:"digest"`
		PullPolicy string `json:"pullPolicy"`
	}
	hook struct {
		Timeout     int    `json:"timeoutSeconds"`
		Delay       int    `json:"shutdownDelaySeconds"`
		Certificate string `json:"certificateSecret"`
		CABundle    string `json:"caBundle"`
	}
)

// Values that the chart's schema accepts become arguments that the webhook accepts and takes for what they
// were, and objects that are whole; all others are refused by name.
func FuzzChartValues(f *testing.F) {
	c, err := loader.Load("../../charts/meshvirt")
	if err != nil {
		f.Fatal(err)
	}
	const digest = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	f.Add("meshvirt", "meshvirt-system", "ghcr.io", "meshvirt/dataplane", "", "", "IfNotPresent", "auto", 2, 5, 10, false, "", "", "", "system-cluster-critical", "a", "1", "")
	f.Add("rel", "1", "registry.example:5000", "mirror/dp", "0.1.0-debug", digest, "Always", "nat-proxy", 3, 30, 300, true, "", "", "mirror", "", "team", "network", "rulesResources: {limits: {cpu: 200m, memory: 32Mi}}")
	f.Add("1", "kube-system", "", "dp", "1", "", "Never", "off", 1, 1, 0, false, "tls", "-----BEGIN CERTIFICATE-----", "x", "high", "a.b/c", "yes", "proxyResources: {requests: {cpu: 1, memory: 1e9}, limits: {cpu: 2.5}}")
	f.Add("true", "null", "a:", "b", "null", "", "Always", "rules", 1, 1, 1, false, "true", "-----BEGIN CERTIFICATE-----\n", "1", "1", "x", "on", "rulesResources: {limits: {ephemeral-storage: 1Gi}, requests: {memory: .5Gi}}")
	f.Fuzz(func(t *testing.T, release, namespace, registry, repository, tag, digest, pull, mode string, replicas, timeout, delay int, manager bool, certificate, ca, secret, priority, key, value, dataPlane string) {
		v := chartValues{
			Replicas: replicas, Mode: mode, Manager: enable{manager}, Priority: priority,
			Image: images{
				Webhook:     image{registry, repository, tag, digest, pull},
				DataPlane:   image{registry, repository, tag, digest, pull},
				PullSecrets: slices.DeleteFunc([]string{secret}, func(s string) bool { return s == "" }),
			},
			Webhook:   hook{timeout, delay, certificate, ca},
			PodLabels: strs{key: value}, Annotation: strs{key: value}, Nodes: strs{key: value},
		}
		if dataPlane != "" && yaml.Unmarshal([]byte(dataPlane), &v.DataPlane) != nil {
			return
		}
		checkChart(t, c, chartutil.ReleaseOptions{Name: release, Namespace: namespace}, v)
	})
}

func checkChart(t *testing.T, c *chart.Chart, release chartutil.ReleaseOptions, v chartValues) {
	if chartutil.ValidateReleaseName(release.Name) != nil || len(validation.IsDNS1123Label(release.Namespace)) > 0 {
		return // refused by helm and by the API server
	}
	if !utf8.ValidString(fmt.Sprint(v)) {
		return // YAML has no such text
	}
	b, err := yaml.Marshal(v)
	if err != nil {
		return // a number that JSON does not have, such as .nan
	}
	values, err := chartutil.ReadValues(b)
	if err != nil {
		return // not what it was when YAML reads it, such as the key <<
	}
	all, err := chartutil.ToRenderValues(c, values, release, chartutil.DefaultCapabilities)
	if err != nil {
		return // refused by the schema
	}
	files, err := engine.Render(c, all)
	if err != nil {
		if !strings.Contains(err.Error(), "leave them empty") && !strings.Contains(err.Error(), "set both webhook.certificateSecret") {
			t.Fatalf("the schema accepts what the templates do not\n%s%v", b, err)
		}
		return
	}
	for name, text := range files {
		if filepath.Ext(name) != ".yaml" {
			continue
		}
		for document := range strings.SplitSeq(text, "\n---\n") {
			var object map[string]any
			if err := yaml.UnmarshalStrict([]byte(document), &object); err != nil {
				t.Fatalf("values\n%srender no YAML in %s: %v\n%s", b, name, err, document)
			}
		}
	}
	var d appsv1.Deployment
	if err := yaml.UnmarshalStrict([]byte(files["meshvirt/templates/deployment.yaml"]), &d); err != nil {
		t.Fatalf("values\n%srender no Deployment: %v", b, err)
	}
	o, err := parse(d.Spec.Template.Spec.Containers[0].Args, io.Discard)
	if err != nil {
		if !strings.Contains(err.Error(), "want at most the limit") { // which no schema can compare
			t.Fatalf("the schema accepts what the webhook does not\n%s%v", b, err)
		}
		return
	}
	want := v.means(t)
	want["instance"], want["namespace"] = release.Name, release.Namespace
	if diff := cmp.Diff(want, meaning(o, &d)); diff != "" {
		t.Errorf("values\n%smean another thing to the webhook (-values +webhook)\n%s", b, diff)
	}
}

// means says in a form to compare what the values are to lead to.
func (v chartValues) means(t *testing.T) map[string]string {
	ref := v.Image.DataPlane.Repository
	if r := v.Image.DataPlane.Registry; r != "" {
		ref = r + "/" + ref
	}
	if tag := v.Image.DataPlane.Tag; tag != "" {
		ref += ":" + tag
	} else {
		ref += ":" + plan.Release
	}
	if v.Image.DataPlane.Digest != "" {
		ref += "@" + v.Image.DataPlane.Digest
	}
	m := map[string]string{
		"image": ref, "webhook image": ref, "pull policy": v.Image.DataPlane.PullPolicy, "webhook pull policy": v.Image.Webhook.PullPolicy,
		"mode": v.Mode, "delay": (time.Duration(v.Webhook.Delay) * time.Second).String(), "replicas": fmt.Sprint(v.Replicas),
		"priority": v.Priority, "pull secrets": fmt.Sprint(v.Image.PullSecrets), "certificate": "made",
	}
	if v.Manager.Enabled || v.Webhook.Certificate != "" {
		m["certificate"] = "mounted"
	}
	for k, value := range v.PodLabels {
		m["label "+k], m["annotation "+k], m["node "+k] = value, value, value
	}
	given, _ := v.DataPlane.(map[string]any)
	for _, container := range []string{"rules", "proxy"} {
		for _, kind := range []string{"requests", "limits"} {
			resources, _ := given[container+"Resources"].(map[string]any)
			amounts, _ := resources[kind].(map[string]any)
			for name, amount := range amounts {
				q, err := resource.ParseQuantity(fmt.Sprint(amount))
				if err != nil {
					t.Errorf("%s of %s is %v: %v", name, container, amount, err)
				}
				m[container+" "+kind+" "+name] = fmt.Sprint(q.AsApproximateFloat64())
			}
		}
	}
	return m
}

// meaning says in the same form what they led to.
func meaning(o *options, d *appsv1.Deployment) map[string]string {
	pod := d.Spec.Template.Spec
	m := map[string]string{
		"image": o.image.Name, "webhook image": pod.Containers[0].Image, "pull policy": string(o.image.PullPolicy),
		"webhook pull policy": string(pod.Containers[0].ImagePullPolicy), "mode": string(o.mode), "delay": o.shutdownDelay.String(),
		"replicas": fmt.Sprint(*d.Spec.Replicas), "priority": pod.PriorityClassName, "certificate": "mounted",
	}
	if o.certDir == "" {
		m["certificate"] = "made"
	}
	m["instance"], m["namespace"] = d.Spec.Selector.MatchLabels["app.kubernetes.io/instance"], d.Namespace
	var secrets []string
	for _, s := range pod.ImagePullSecrets {
		secrets = append(secrets, s.Name)
	}
	m["pull secrets"] = fmt.Sprint(secrets)
	own := map[string]bool{
		"app.kubernetes.io/name": true, "app.kubernetes.io/instance": true, "app.kubernetes.io/component": true, "app.kubernetes.io/version": true,
		"app.kubernetes.io/managed-by": true, "helm.sh/chart": true, "sidecar.istio.io/inject": true, "istio.io/dataplane-mode": true, "linkerd.io/inject": true,
	}
	for what, all := range map[string]map[string]string{"label": d.Spec.Template.Labels, "annotation": d.Spec.Template.Annotations, "node": pod.NodeSelector} {
		for k, value := range all {
			if !own[k] {
				m[what+" "+k] = value
			}
		}
	}
	for container, r := range map[string]corev1.ResourceRequirements{"rules": o.image.RulesResources, "proxy": o.image.ProxyResources} {
		for kind, list := range map[string]corev1.ResourceList{"requests": r.Requests, "limits": r.Limits} {
			for name, q := range list {
				m[container+" "+kind+" "+string(name)] = fmt.Sprint(q.AsApproximateFloat64())
			}
		}
	}
	return m
}

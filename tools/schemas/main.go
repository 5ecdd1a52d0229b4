// Command schemas writes JSON schemas of Kubernetes' and cert-manager's objects into a directory, for
// kubeconform. They come from the modules of these projects, so that no other server is asked.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"sigs.k8s.io/yaml"
)

// certManager names the release that the chart's Certificate and Issuer are checked against. That of
// Kubernetes is in tools/controlplane.
const certManager = "github.com/cert-manager/cert-manager@v1.20.3"

const (
	quantity   = "io.k8s.apimachinery.pkg.api.resource.Quantity"
	definition = "#/definitions/"
)

// object is a piece of JSON schema.
type object = map[string]any

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: go run ./tools/schemas DIRECTORY")
		os.Exit(2)
	}
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "schemas:", err)
		os.Exit(1)
	}
}

// run writes one file a kind, as kind-group-version.json.
func run(out string) error {
	kubernetes, err := module("tools/controlplane", "k8s.io/kubernetes")
	if err != nil {
		return err
	}
	if err := builtIn(filepath.Join(kubernetes, "api", "openapi-spec", "swagger.json"), out); err != nil {
		return err
	}
	manager, err := module(".", certManager)
	if err != nil {
		return err
	}
	files, err := filepath.Glob(filepath.Join(manager, "deploy", "crds", "*.yaml"))
	if err == nil && len(files) == 0 {
		err = errors.New(certManager + " has no deploy/crds")
	}
	for _, file := range files {
		err = errors.Join(err, custom(file, out))
	}
	return err
}

// module gives the directory of a module, which it downloads if need be.
func module(dir, name string) (string, error) {
	cmd := exec.Command("go", "mod", "download", "-json", name)
	cmd.Dir = dir
	b, err := cmd.Output()
	var found struct{ Dir, Error string }
	if jsonErr := json.Unmarshal(b, &found); jsonErr != nil || found.Dir == "" {
		return "", fmt.Errorf("download %s: %w %s", name, errors.Join(err, jsonErr), found.Error)
	}
	return found.Dir, nil
}

// builtIn writes the schemas of Kubernetes' own kinds. Each file contains what it refers to, because
// kubeconform follows no reference into another file.
func builtIn(swagger, out string) error {
	b, err := os.ReadFile(swagger)
	if err != nil {
		return err
	}
	var spec struct{ Definitions object }
	if err := json.Unmarshal(b, &spec); err != nil {
		return fmt.Errorf("read %s: %w", swagger, err)
	}
	strict, _ := closed(spec.Definitions).(object)
	strict[quantity] = object{"type": []string{"string", "number"}}
	for name, def := range spec.Definitions {
		d, _ := def.(object)
		kinds, _ := d["x-kubernetes-group-version-kind"].([]any)
		if len(kinds) != 1 {
			continue // part of an object, or in every group
		}
		k, _ := kinds[0].(object)
		used := object{}
		collect(strict, name, used)
		if err := write(out, k["group"], k["version"], k["kind"], object{"$ref": definition + name, "definitions": used}); err != nil {
			return err
		}
	}
	return nil
}

// custom writes the schema of each version of a CustomResourceDefinition.
func custom(file, out string) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var crd struct {
		Spec struct {
			Group    string
			Names    struct{ Kind string }
			Versions []struct {
				Name   string
				Schema struct{ OpenAPIV3Schema object }
			}
		}
	}
	if err := yaml.Unmarshal(b, &crd); err != nil {
		return fmt.Errorf("read %s: %w", file, err)
	}
	for _, v := range crd.Spec.Versions {
		schema, _ := closed(v.Schema.OpenAPIV3Schema).(object)
		properties, ok := schema["properties"].(object)
		if !ok {
			continue // another file of the directory
		}
		properties["metadata"] = object{"type": "object"} // a CRD leaves it to Kubernetes
		if err := write(out, crd.Spec.Group, v.Name, crd.Spec.Names.Kind, schema); err != nil {
			return err
		}
	}
	return nil
}

// closed gives a copy of a schema that refuses fields it does not name, and says what JSON schema has no
// word for: a number or a string.
func closed(v any) any {
	switch v := v.(type) {
	case []any:
		list := make([]any, len(v))
		for i := range v {
			list[i] = closed(v[i])
		}
		return list
	case object:
		if v["format"] == "int-or-string" || v["x-kubernetes-int-or-string"] == true {
			return object{"type": []string{"string", "integer"}}
		}
		c := maps.Clone(v)
		for key := range c {
			c[key] = closed(c[key])
		}
		_, isObject := c["properties"].(object)
		if _, open := c["additionalProperties"]; isObject && !open && c["x-kubernetes-preserve-unknown-fields"] != true {
			c["additionalProperties"] = false
		}
		return c
	default:
		return v
	}
}

// collect adds the named definition, and all it refers to, to used.
func collect(definitions object, name string, used object) {
	if _, done := used[name]; done {
		return
	}
	used[name] = definitions[name]
	var visit func(v any)
	visit = func(v any) {
		switch v := v.(type) {
		case []any:
			for _, item := range v {
				visit(item)
			}
		case object:
			if ref, ok := v["$ref"].(string); ok {
				collect(definitions, strings.TrimPrefix(ref, definition), used)
			}
			for _, item := range v {
				visit(item)
			}
		}
	}
	visit(definitions[name])
}

// write names the file as kubeconform's {{.ResourceKind}}{{.KindSuffix}} does.
func write(out string, group, version, kind any, schema object) error {
	name := strings.ToLower(fmt.Sprint(kind))
	if group != "" {
		first, _, _ := strings.Cut(fmt.Sprint(group), ".")
		name += "-" + first
	}
	b, err := json.Marshal(schema)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(out, fmt.Sprintf("%s-%s.json", name, version)), b, 0o644)
}

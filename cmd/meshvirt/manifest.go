package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

// A document is one manifest of a file.
type document struct {
	// JSON is the manifest, whatever form it came in.
	JSON []byte
	// isYAML remembers that form.
	isYAML bool
}

// split cuts a file into documents: YAML ones between "---", or JSON objects one behind the other.
// Documents without content are left out.
func split(in []byte) ([]document, error) {
	if _, _, isJSON := utilyaml.GuessJSONStream(bytes.NewReader(in), 4096); isJSON {
		return splitJSON(in)
	}
	var docs []document
	r := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(in)))
	for n := 1; ; n++ {
		b, err := r.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("document %d: %w", n, err)
		}
		// Strict refuses a key that is there twice: one of the two would be lost.
		var v any
		if err := yaml.UnmarshalStrict(b, &v); err != nil {
			return nil, fmt.Errorf("document %d: %w", n, err)
		}
		if v == nil {
			continue
		}
		j, err := yaml.YAMLToJSONStrict(b)
		if err != nil {
			return nil, fmt.Errorf("document %d: %w", n, err)
		}
		docs = append(docs, document{JSON: j, isYAML: true})
	}
	if len(docs) == 0 {
		return nil, errors.New("no manifest, want at least one")
	}
	return docs, nil
}

func splitJSON(in []byte) ([]document, error) {
	var docs []document
	d := json.NewDecoder(bytes.NewReader(in))
	for {
		var raw json.RawMessage
		err := d.Decode(&raw)
		if errors.Is(err, io.EOF) {
			return docs, nil
		}
		if err != nil {
			return nil, fmt.Errorf("document %d: %w", len(docs)+1, err)
		}
		docs = append(docs, document{JSON: raw})
	}
}

// write prints d in the form asked for, or else in the form it came in; separated puts a YAML
// separator in front.
func (d document) write(out *bytes.Buffer, output form, separated bool) error {
	if output == asJSON || output == "" && !d.isYAML {
		if err := json.Indent(out, d.JSON, "", "  "); err != nil {
			return err
		}
		return out.WriteByte('\n')
	}
	y, err := yaml.JSONToYAML(d.JSON)
	if err != nil {
		return err
	}
	if separated {
		out.WriteString("---\n")
	}
	out.Write(y)
	return nil
}

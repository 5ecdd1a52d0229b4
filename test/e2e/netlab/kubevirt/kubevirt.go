// Package kubevirt has the rules of KubeVirt's masquerade binding, as its own code was recorded to
// write them.
package kubevirt

import (
	"embed"
	"fmt"
	"strings"
)

//go:embed testdata
var testdata embed.FS

// Rules gives a recording, named <version>-<istio|noistio>-<ports>-<families>, for nft -f.
func Rules(name string) (string, error) {
	b, err := testdata.ReadFile("testdata/" + name + ".nft")
	if err != nil {
		return "", fmt.Errorf("no recording %q of KubeVirt's rules: want one of %s", name, strings.Join(Recordings(), ", "))
	}
	return string(b), nil
}

// Recordings lists the names for Rules.
func Recordings() []string {
	entries, err := testdata.ReadDir("testdata")
	if err != nil {
		panic(err) // embedded
	}
	var names []string
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), ".nft"); ok {
			names = append(names, name)
		}
	}
	return names
}

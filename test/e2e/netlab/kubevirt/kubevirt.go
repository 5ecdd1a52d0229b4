// Package kubevirt has the rules of KubeVirt's masquerade binding, as its own code was recorded to
// write them.
package kubevirt

import "embed"

//go:embed testdata
var testdata embed.FS

// Rules gives an embedded recording, named <version>-<istio|noistio>-<ports>-<families>, for nft -f.
func Rules(name string) (string, error) { return Embedded().Rules(name) }

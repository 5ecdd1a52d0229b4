package kubevirt

import (
	"fmt"
	"io/fs"
	"strings"

	"github.com/meshvirt/meshvirt/test/e2e/netlab/corpus"
)

// Corpus is a directory of recordings: cases.json, which says how each came about, and <case>.nft.
type Corpus struct{ FS fs.FS }

// Embedded are the recordings that come with the lab.
func Embedded() Corpus { return Corpus{corpus.Embedded(testdata, "testdata")} }

// A Case is one recorded VMI with masquerade binding.
type Case struct {
	Name string `json:"case"`
	// Release is KubeVirt's.
	Release string `json:"kubevirt"`
	// Istio says that the VMI has the annotation sidecar.istio.io/inject: "true".
	Istio bool `json:"istio_annotation_on_vmi"`
	// Migration says that the VMI is of the time when virt-launcher served migrations on ports of its own.
	Migration bool `json:"legacy_migration_ports"`
	// Ports and Ranges are those that the VMI lists.
	Ports []struct {
		Port     uint16
		Protocol string
	} `json:"ports"`
	Ranges []struct {
		Protocol   string
		Start, End uint16
	} `json:"port_ranges"`
	// PodIP are the pod's addresses, BridgeIP those of the guest's gateway, by v4 and v6.
	PodIP    map[string]string `json:"pod_ip"`
	BridgeIP map[string]string `json:"bridge_ip"`
	// Mesh is the version of Istio whose rules are in the recording too, if any.
	Mesh string `json:"istio_iptables"`
}

// Cases lists what was recorded, in the order of cases.json.
func (c Corpus) Cases() ([]Case, error) { return corpus.Cases[Case](c.FS, "cases.json") }

// Rules gives a recording for nft -f.
func (c Corpus) Rules(name string) (string, error) {
	b, err := fs.ReadFile(c.FS, name+".nft")
	if err != nil {
		return "", fmt.Errorf("no recording %q of KubeVirt's rules: want one of %s", name, strings.Join(c.recordings(), ", "))
	}
	return string(b), nil
}

func (c Corpus) recordings() []string {
	files, _ := fs.Glob(c.FS, "*.nft") // the pattern is good
	for i := range files {
		files[i] = strings.TrimSuffix(files[i], ".nft")
	}
	return files
}

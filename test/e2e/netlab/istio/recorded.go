package istio

import (
	"embed"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
)

// testdata holds recordings: <version>/<case>.{iptables-save,ip6tables-save,nft}.
//
//go:embed testdata
var testdata embed.FS

func recording(version, name string) (string, error) {
	b, err := testdata.ReadFile(path.Join("testdata", version, name))
	if err != nil {
		return "", fmt.Errorf("istio-iptables arguments cannot be represented: istio %s has no recording %s", version, name)
	}
	return string(b), nil
}

func recorded(version, name string) bool {
	_, err := recording(version, name)
	return err == nil
}

// Versions lists the versions of Istio that were recorded, the oldest first.
func Versions() []string {
	all, err := Embedded().Versions()
	if err != nil {
		panic(err) // embedded
	}
	return all
}

func versions(dir fs.FS) ([]string, error) {
	entries, err := fs.ReadDir(dir, ".")
	if err != nil {
		return nil, err
	}
	var all []string
	for _, e := range entries {
		if e.IsDir() {
			all = append(all, e.Name())
		}
	}
	slices.SortFunc(all, func(a, b string) int { return slices.Compare(numbers(a), numbers(b)) })
	return all, nil
}

// recordedVersion is the newest recorded version that is not newer than v.
func recordedVersion(v string) (string, error) {
	best := ""
	for _, r := range Versions() {
		if slices.Compare(numbers(r), numbers(v)) <= 0 {
			best = r
		}
	}
	if best == "" {
		return "", fmt.Errorf("istio version %q is older than those recorded: %s", v, strings.Join(Versions(), ", "))
	}
	return best, nil
}

// numbers of 1.29.6 are 1, 29, 6. A pre-release counts as the release.
func numbers(version string) []int {
	release, _, _ := strings.Cut(strings.TrimPrefix(version, "v"), "-")
	var n []int
	for _, s := range strings.Split(release, ".") {
		i, err := strconv.Atoi(s)
		if err != nil {
			return nil // older than all
		}
		n = append(n, i)
	}
	return n
}

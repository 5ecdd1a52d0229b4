package mutate

import (
	"slices"
	"strconv"
	"strings"
)

// What is around a pod and decides about it, for whoever looks at a whole cluster.

// OptedOutValue is the value of the label annotations.Inject by which a namespace opts out.
const OptedOutValue = "disabled"

// PodSecurity is the label by which a namespace enforces a Pod Security level.
const PodSecurity = "pod-security.kubernetes.io/enforce"

// RefusingLevel gives the Pod Security level that a namespace with these labels enforces, if it refuses the
// capability NET_ADMIN of the container that writes rules; else "".
func RefusingLevel(namespaceLabels map[string]string) string {
	if level := namespaceLabels[PodSecurity]; slices.Contains([]string{"baseline", "restricted"}, level) {
		return level
	}
	return ""
}

// nativeSidecars is the first minor release of Kubernetes 1 that has them without being told (KEP-753).
const nativeSidecars = 29

// NoNativeSidecars is the fact of that name, of an API server with these numbers in its version.
func NoNativeSidecars(major, minor string) bool {
	// Some distributions append a sign to the minor, such as "28+".
	n, err := strconv.Atoi(strings.TrimRight(minor, "+"))
	return err == nil && major == "1" && n < nativeSidecars
}

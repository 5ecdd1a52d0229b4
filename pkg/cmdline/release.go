package cmdline

import (
	"cmp"
	"strconv"
	"strings"
)

// A Release is Istio's version; the zero value is an unknown one.
type Release struct{ major, minor, patch int } // a patch of -1 is unknown

// ReleaseOf reads an image's tag, such as docker.io/istio/proxyv2:1.22.8-distroless.
func ReleaseOf(image string) Release {
	_, tag := splitImage(image)
	return ParseRelease(tag)
}

// ParseRelease reads a version such as 1.22.8, v1.22 or 1.31.0-rc.0. What is none is unknown.
func ParseRelease(tag string) Release {
	parts := strings.SplitN(strings.TrimPrefix(tag, "v"), ".", 3)
	if len(parts) < 2 {
		return Release{}
	}
	major, errMajor := strconv.Atoi(parts[0])
	minor, errMinor := strconv.Atoi(leadingDigits(parts[1]))
	if errMajor != nil || errMinor != nil {
		return Release{}
	}
	r := Release{major, minor, -1}
	if len(parts) == 3 && leadingDigits(parts[1]) == parts[1] {
		if n, err := strconv.Atoi(leadingDigits(parts[2])); err == nil {
			r.patch = n
		}
	}
	return r
}

// splitImage gives the last part of an image's name and its tag.
func splitImage(image string) (name, tag string) {
	image, _, _ = strings.Cut(image, "@") // the digest
	name, tag, _ = strings.Cut(image[strings.LastIndex(image, "/")+1:], ":")
	return name, tag
}

func leadingDigits(s string) string {
	if i := strings.IndexFunc(s, func(c rune) bool { return c < '0' || c > '9' }); i >= 0 {
		return s[:i]
	}
	return s
}

// Before reports whether r is known to be older than the given release.
func (r Release) Before(major, minor int) bool {
	return r != Release{} && (r.major < major || r.major == major && r.minor < minor)
}

// Compare orders releases, as cmp.Compare does.
func (r Release) Compare(x Release) int {
	return cmp.Or(cmp.Compare(r.major, x.major), cmp.Compare(r.minor, x.minor), cmp.Compare(r.patch, x.patch))
}

// Exact reports whether r is known to the patch.
func (r Release) Exact() bool { return r != Release{} && r.patch >= 0 }

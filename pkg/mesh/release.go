package mesh

import (
	"cmp"
	"strconv"
	"strings"
)

// A release is Istio's version; the zero value is an unknown one. A patch of -1 is unknown.
type release struct{ major, minor, patch int }

// releaseOf reads an image's tag, such as docker.io/istio/proxyv2:1.22.8-distroless.
func releaseOf(image string) release {
	_, tag := splitImage(image)
	parts := strings.SplitN(strings.TrimPrefix(tag, "v"), ".", 3)
	if len(parts) < 2 {
		return release{}
	}
	major, errMajor := strconv.Atoi(parts[0])
	minor, errMinor := strconv.Atoi(leadingDigits(parts[1]))
	if errMajor != nil || errMinor != nil {
		return release{}
	}
	r := release{major, minor, -1}
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

// before reports whether r is known to be older than the given release.
func (r release) before(major, minor int) bool {
	return r != release{} && (r.major < major || r.major == major && r.minor < minor)
}

func (r release) compare(x release) int {
	return cmp.Or(cmp.Compare(r.major, x.major), cmp.Compare(r.minor, x.minor), cmp.Compare(r.patch, x.patch))
}

// A span is a closed range of releases.
type span struct{ first, last release }

// holds reports whether r is known, to the patch, to be one of the span.
func (s span) holds(r release) bool {
	return r != release{} && r.patch >= 0 && s.first.compare(r) <= 0 && r.compare(s.last) <= 0
}

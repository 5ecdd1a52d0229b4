#!/bin/sh
# Runs every fuzz target of the module, each for ${FUZZTIME:-1m}. go test takes one target at a time.
# The first run compiles all that a target uses anew, with the counters of the fuzzer. What a target finds is a file below the package's testdata/fuzz, which belongs into a commit with the fix.
set -eu
cd "$(dirname "$0")/.."
export CGO_ENABLED=0
failed=
for package in $(grep -rlE '^func Fuzz' --include='*_test.go' . | xargs -n1 dirname | sort -u); do
	for target in $(go test -trimpath -list '^Fuzz' "$package" | grep '^Fuzz'); do
		echo "== $package $target"
		go test -trimpath -run '^$' -fuzz "^$target\$" -fuzztime "${FUZZTIME:-1m}" -fuzzminimizetime 10x "$package" || failed="$failed $package:$target"
	done
done
[ -z "$failed" ] || {
	echo "fuzz: failed:$failed" >&2
	exit 1
}

#!/bin/sh
# Builds the images of Dockerfile for amd64 and arm64 into build/webhook.tar and build/dataplane.tar, OCI
# archives with an index, and looks into them. The same commit and Go give the same digest.
#
# usage: tools/image.sh [REGISTRY/PREFIX]     default ghcr.io/meshvirt
#
# Push one with, for example:
#   skopeo copy --all oci-archive:build/webhook.tar docker://registry.example/meshvirt/webhook:0.1.0
set -eu
cd "$(dirname "$0")/.."

prefix=${1:-ghcr.io/meshvirt}
release=$(sed -n 's/^appVersion: "\(.*\)"$/\1/p' charts/meshvirt/Chart.yaml)
architectures='amd64 arm64'
export CGO_ENABLED=0

tools/setup.sh buildah
for arch in $architectures; do
	mkdir -p "build/linux-$arch"
	for program in webhook rules proxy; do
		GOOS=linux GOARCH=$arch go build -trimpath -ldflags '-s -w' -o "build/linux-$arch/meshvirt-$program" "./cmd/$program"
	done
done

# Storage of its own: nothing of this machine's other images is read or changed.
store=$(mktemp -d)
trap 'rm -rf "$store"' EXIT
trap 'exit 1' HUP INT TERM
builder() { buildah --root "$store/root" --runroot "$store/run" --storage-driver vfs "$@"; }

for target in webhook dataplane; do
	# A fixed time and order, so that the digest depends on the content alone.
	for arch in $architectures; do
		builder build --quiet --timestamp 0 --platform "linux/$arch" --target "$target" --manifest "$target" .
	done
	rm -f "build/$target.tar"
	builder manifest push --quiet --all "$target" "oci-archive:build/$target.tar:$prefix/$target:$release"
done >/dev/null

go run -trimpath ./tools/image

#!/bin/sh
# Builds the images of Dockerfile into DIRECTORY/webhook.tar and DIRECTORY/dataplane.tar, OCI archives with
# an index, and looks into them. The same commit and Go give the same digest.
#
# usage: tools/image.sh [-a "ARCHITECTURE..."] [-o DIRECTORY] [REGISTRY/PREFIX]
#        default       amd64 arm64             build          ghcr.io/meshvirt
#
# Push one with, for example:
#   skopeo copy --all oci-archive:build/webhook.tar docker://registry.example/meshvirt/webhook:0.1.0
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
architectures='amd64 arm64'
dir=$root/build
while getopts a:o: option; do
	case $option in
	a) architectures=$OPTARG ;;
	o) dir=$(CDPATH='' cd -- "$OPTARG" && pwd) ;;
	*) exit 2 ;;
	esac
done
shift $((OPTIND - 1))
prefix=${1:-ghcr.io/meshvirt}

cd "$root"
release=$(sed -n 's/^appVersion: "\(.*\)"$/\1/p' charts/meshvirt/Chart.yaml)
export CGO_ENABLED=0

tools/setup.sh buildah
for arch in $architectures; do
	mkdir -p "$dir/linux-$arch"
	for program in webhook rules proxy; do
		GOOS=linux GOARCH=$arch go build -trimpath -ldflags '-s -w' -o "$dir/linux-$arch/meshvirt-$program" "./cmd/$program"
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
		builder build --quiet --timestamp 0 --platform "linux/$arch" --target "$target" --manifest "$target" -f Dockerfile "$dir"
	done
	rm -f "$dir/$target.tar"
	builder manifest push --quiet --all "$target" "oci-archive:$dir/$target.tar:$prefix/$target:$release"
done >/dev/null

go run -trimpath ./tools/image -architectures "$architectures" "$dir"

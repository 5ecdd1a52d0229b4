#!/bin/sh
# Gets what tests and the demo need besides this repository and Go, and does nothing for what is there.
#
# usage: tools/setup.sh TASK...
#
# Each task is the shell function setup_TASK below. Files go to ${MESHVIRT_CACHE:-~/.cache/meshvirt},
# outside the tree, into a directory named by what they were made from; a task ends by printing it.
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
cache=${MESHVIRT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/meshvirt}

# One set of build flags everywhere: each combination has its own build cache (minutes and gigabytes
# for kube-apiserver).
export CGO_ENABLED=0

say() { echo "setup: $*" >&2; }

# place DIRECTORY FUNCTION: runs FUNCTION with a fresh directory and makes that DIRECTORY when it is
# complete, so that an interrupted run leaves nothing that looks finished. Runs at the same time wait
# for the first one's result.
place() {
	if [ ! -d "$1" ]; then
		mkdir -p "$cache"
		exec 9>"${1%/*}/.${1##*/}.lock"
		flock 9
		if [ ! -d "$1" ]; then # not `||`, within which the shell forgets set -e
			build_into "$@"
		fi
		exec 9>&-
	fi
	echo "$1"
}

build_into() {
	work=$(mktemp -d "$cache/work.XXXXXX")
	trap 'rm -rf "$work"' EXIT
	trap 'exit 1' HUP INT TERM
	"$2" "$work" 9>&-
	chmod 755 "$work"
	mv -T "$work" "$1"
	trap - EXIT HUP INT TERM
}

# controlplane: kube-apiserver and etcd for the tests that use a real API server, built from the
# module in tools/controlplane. Cold it takes some 5 minutes.
setup_controlplane() {
	place "$cache/controlplane-$(hash_of controlplane/go.mod controlplane/go.sum)" build_controlplane
}

build_controlplane() {
	build_kubernetes controlplane "$1" "" kube-apiserver
	(cd "$root/tools/controlplane" && go build -trimpath -o "$1/etcd" -ldflags "-s -w" go.etcd.io/etcd/server/v3)
}

# oldest: kube-apiserver of the oldest Kubernetes that the chart installs on, from the module in
# tools/controlplane-oldest. It runs with controlplane's etcd, and takes as long to build.
setup_oldest() {
	place "$cache/oldest-$(hash_of controlplane-oldest/go.mod controlplane-oldest/go.sum)" build_oldest
}

# providerless leaves out the cloud providers that these releases still had in them, and their SDKs.
build_oldest() { build_kubernetes controlplane-oldest "$1" providerless kube-apiserver; }

# node: what makes a cluster of one node of controlplane, from the same module; Debian has the container
# runtime.
setup_node() {
	apt_ensure containerd runc containernetworking-plugins
	place "$cache/node-$(hash_of controlplane/go.mod controlplane/go.sum)" build_node
}

build_node() {
	build_kubernetes controlplane "$1" "" kube-controller-manager kube-scheduler kube-proxy kubelet kubectl
}

# hash_of FILE...: of their contents, below tools/.
hash_of() { (cd "$root/tools" && cat "$@") | sha256sum | cut -c1-16; }

# build_kubernetes MODULE DIRECTORY TAGS PROGRAM...
build_kubernetes() {
	module=$1 dir=$2 tags=$3
	shift 3
	version=$(sed -n 's,^[[:space:]]*k8s.io/kubernetes \(v[0-9.]*\).*,\1,p' "$root/tools/$module/go.mod")
	minor=${version#v*.}
	minor=${minor%%.*}
	pkg=k8s.io/component-base/version
	say "building $* $version (some minutes the first time)"
	# go build does not stamp the version; without it the API server calls itself v0.0.0-master.
	(cd "$root/tools/$module" &&
		go build -trimpath -tags "$tags" -o "$dir/" -ldflags "-s -w -X $pkg.gitVersion=$version -X $pkg.gitMajor=1 -X $pkg.gitMinor=$minor -X $pkg.gitTreeState=clean -X $pkg.gitCommit=none -X $pkg.buildDate=1970-01-01T00:00:00Z" \
			$(printf 'k8s.io/kubernetes/cmd/%s ' "$@"))
}

# certmanager: cert-manager's own controllers, as far as the chart needs them, and its CRDs.
setup_certmanager() {
	place "$cache/certmanager-$(hash_of certmanager/main.go certmanager/go.mod certmanager/go.sum)" build_certmanager
}

build_certmanager() {
	say "building cert-manager's controllers (some minutes the first time)"
	(cd "$root/tools/certmanager" &&
		go build -trimpath -o "$1/" -ldflags "-s -w" . &&
		module=$(go list -m -f '{{.Dir}}' github.com/cert-manager/cert-manager) &&
		mkdir "$1/crds" &&
		cp "$module"/deploy/crds/*.yaml "$1/crds")
}

# helm: renders and checks the chart.
helm_version=v3.22.0
setup_helm() {
	place "$cache/helm-$helm_version" build_helm
}

build_helm() {
	say "building helm $helm_version"
	GOBIN=$1 go install -trimpath -ldflags "-s -w" "helm.sh/helm/v3/cmd/helm@$helm_version"
}

# kubeconform: checks rendered objects against schemas, which tools/schemas makes.
kubeconform_version=v0.8.0
setup_kubeconform() {
	place "$cache/kubeconform-$kubeconform_version-$(hash_of schemas/main.go controlplane/go.mod)" build_kubeconform
}

build_kubeconform() {
	say "building kubeconform $kubeconform_version and schemas"
	GOBIN=$1 go install -trimpath -ldflags "-s -w" "github.com/yannh/kubeconform/cmd/kubeconform@$kubeconform_version"
	mkdir "$1/schemas"
	(cd "$root" && go run -trimpath ./tools/schemas "$1/schemas")
}

# buildah: builds the images, without a daemon.
setup_buildah() {
	apt_ensure buildah
}

# apt: the Debian packages that the path tests and the demo call. Needs root if one is missing.
setup_apt() {
	apt_ensure nftables iptables iproute2 qemu-system-x86 busybox-static passt
}

# bench: the Debian packages that the benchmark needs besides those of apt: a peer and a load.
setup_bench() {
	apt_ensure haproxy wrk
}

apt_ensure() {
	missing=
	for package in "$@"; do
		dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q '^install ok installed$' || missing="$missing $package"
	done
	[ -n "$missing" ] || return 0
	say "installing$missing"
	# The words of $missing are package names.
	# shellcheck disable=SC2086
	apt_install $missing >/dev/null || { apt-get update -q >/dev/null && apt_install $missing >/dev/null; }
}

apt_install() { DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "$@"; }

# guest: Debian's kernel for virtual machines with its modules, unpacked and never installed. It is
# what the virtual machine of the path tests boots. The version is the one that apt would install.
setup_guest() {
	kernel_package || { apt-get update -q >/dev/null 2>&1 && kernel_package; } || {
		# Without a mirror a kernel of an earlier run will do.
		for dir in "$cache"/guest-*/; do
			[ -e "$dir/vmlinuz" ] && echo "${dir%/}" && return 0
		done
		say "apt knows no package linux-image-cloud-amd64"
		return 1
	}
	place "$cache/guest-$version" build_guest
}

# kernel_package sets package and version: linux-image-6.1.0-56-cloud-amd64 and 6.1.192-2.
kernel_package() {
	package=$(apt-cache depends linux-image-cloud-amd64 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)$/\1/p')
	[ -n "$package" ] || return 1
	version=$(apt-cache policy "$package" | sed -n 's/^ *Candidate: *//p')
	[ -n "$version" ] && [ "$version" != '(none)' ]
}

build_guest() {
	say "downloading $package $version"
	apt_download "$1" || {
		# The package lists may be older than the mirror, which keeps only the newest version.
		apt-get update -q >/dev/null && kernel_package && apt_download "$1"
	}
	dpkg-deb -x "$1"/*.deb "$1/package"
	mv "$1"/package/boot/vmlinuz-* "$1/vmlinuz"
	mv "$1/package/lib/modules" "$1/modules"
	rm -r "$1/package" "$1"/*.deb
}

# APT::Sandbox::User: the cache of root is closed to apt's own user, which only gives a warning.
apt_download() { (cd "$1" && apt-get download -q -o APT::Sandbox::User=root "$package" >/dev/null); }

# passt: the one of Debian 13, with its C library, unpacked beside each other and never installed: Debian 12
# has one of 2023 and none in its backports, and the two behave differently.
passt_version=trixie
setup_passt() {
	place "$cache/passt-$passt_version" build_passt
}

build_passt() {
	say "downloading passt of Debian $passt_version"
	mkdir -p "$1/apt/lists/partial" "$1/apt/cache/archives/partial"
	echo "deb http://deb.debian.org/debian $passt_version main" >"$1/apt/sources.list"
	(
		cd "$1/apt"
		set -- -q -o Dir::Etc::SourceList="$PWD/sources.list" -o Dir::Etc::SourceParts=- -o Dir::State::Lists="$PWD/lists" \
			-o Dir::Cache="$PWD/cache" -o Acquire::Languages=none -o APT::Sandbox::User=root
		apt-get "$@" update >/dev/null
		apt-get "$@" download "passt/$passt_version" "libc6/$passt_version" >/dev/null
	)
	for package in "$1"/apt/*.deb; do
		dpkg-deb -x "$package" "$1/root"
	done
	mkdir "$1/lib"
	mv "$1"/root/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2 "$1"/root/usr/lib/x86_64-linux-gnu/libc.so.6 "$1/lib"
	mv "$1/root/usr/bin/passt" "$1"
	rm -r "$1/apt" "$1/root"
}

if [ $# -eq 0 ]; then
	echo "usage: tools/setup.sh apt|guest|passt|controlplane|oldest|certmanager|node|helm|kubeconform|buildah|bench ..." >&2
	exit 2
fi
for task in "$@"; do
	case $task in
	apt | guest | passt | controlplane | oldest | certmanager | node | helm | kubeconform | buildah | bench) "setup_$task" ;;
	*)
		echo "tools/setup.sh: unknown task $task" >&2
		exit 2
		;;
	esac
done

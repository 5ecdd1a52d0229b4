# `make help` lists the targets. One set of build flags everywhere: another one compiles all
# dependencies, kube-apiserver among them, a second time.
export CGO_ENABLED := 0
GOFLAGS_BUILD := -trimpath
SETUP := tools/setup.sh
CACHE := $(or $(MESHVIRT_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/meshvirt)

GOLANGCI_VERSION := v2.15.0
GOTESTSUM_VERSION := v1.13.0
GOLANGCI := $(CACHE)/golangci-lint-$(GOLANGCI_VERSION)/golangci-lint
GOTESTSUM := $(CACHE)/gotestsum-$(GOTESTSUM_VERSION)/gotestsum

.DEFAULT_GOAL := help
.PHONY: help build demo test conformance lint bench fuzz golden chart image clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

build: ## Build the four programs into build/
	go build $(GOFLAGS_BUILD) -ldflags '-s -w' -o build/meshvirt-webhook ./cmd/webhook
	go build $(GOFLAGS_BUILD) -ldflags '-s -w' -o build/meshvirt-rules ./cmd/rules
	go build $(GOFLAGS_BUILD) -ldflags '-s -w' -o build/meshvirt-proxy ./cmd/proxy
	go build $(GOFLAGS_BUILD) -ldflags '-s -w' -o build/kubectl-meshvirt ./cmd/meshvirt

demo: ## See a real guest's packets pass the sidecar, hop by hop (root; sets itself up)
	@$(SETUP) apt guest controlplane helm >/dev/null
	@go run $(GOFLAGS_BUILD) ./test/e2e/demo

test: $(GOTESTSUM) ## Run every test (root; sets itself up)
	@$(SETUP) apt guest passt controlplane oldest certmanager node helm kubeconform buildah bench >/dev/null
	@mkdir -p build
	$(GOTESTSUM) --format pkgname --format-hide-empty-pkg --jsonfile build/test.json -- $(GOFLAGS_BUILD) -timeout 20m ./...
	@[ "$$CI" != true ] || ! grep '"Action":"skip".*"Test":' build/test.json

conformance: ## Send packets in every mode, version and backend; CORPUS=DIR has other recordings (root)
	@$(SETUP) apt guest >/dev/null
	@mkdir -p build
	go build $(GOFLAGS_BUILD) -o build/conformance ./test/e2e/conformance
	build/conformance -out build/conformance.json $(if $(CORPUS),-corpus $(CORPUS),-doc docs/conformance.md) $(ARGS)

lint: $(GOLANGCI) ## Check form and import rules
	go vet $(GOFLAGS_BUILD) ./...
	cd tools/certmanager && go vet $(GOFLAGS_BUILD) ./...
	$(GOLANGCI) run ./...

bench: ## Measure against peers in one run; ratios go to build/bench.json (root; sets itself up)
	@$(SETUP) apt controlplane helm bench >/dev/null
	@mkdir -p build
	go run $(GOFLAGS_BUILD) ./test/bench -out build/bench.json

fuzz: ## Run each fuzz target for a minute
	@tools/fuzz.sh

golden: ## Write the golden files again after a wanted change; read the diff
	@$(SETUP) helm >/dev/null
	go test $(GOFLAGS_BUILD) ./pkg/mutate ./pkg/decision ./pkg/annotations ./pkg/check ./cmd/meshvirt ./pkg/walk ./charts ./test/e2e/netlab -run "Golden|Documented" -update

chart: ## Check the Helm chart and package it into build/
	@$(SETUP) helm kubeconform >/dev/null
	go test $(GOFLAGS_BUILD) ./charts
	@mkdir -p build
	$$($(SETUP) helm)/helm package charts/meshvirt --destination build

image: ## Build both images for amd64 and arm64 into build/*.tar, and check them (root)
	@tools/image.sh

clean: ## Remove build/
	rm -rf build

$(GOLANGCI):
	GOBIN=$(@D) go install $(GOFLAGS_BUILD) github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION)

$(GOTESTSUM):
	GOBIN=$(@D) go install $(GOFLAGS_BUILD) gotest.tools/gotestsum@$(GOTESTSUM_VERSION)

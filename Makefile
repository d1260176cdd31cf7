# What people do with this repository. It needs Rust, Go and Debian as root; the rest it installs, beside the checkout.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

version := $(shell sed -n '0,/^version = "\(.*\)"/s//\1/p' Cargo.toml)
target := x86_64-unknown-linux-gnu
binary := target/$(target)/release/charon
image := target/charon.tar
context := target/image
scripts := $(shell git ls-files | xargs grep -l -s '^\#!.*\bbash')

# Used where a cluster is not inside yet: cargo-nextest, helm, crane.
export PATH := $(shell tests/tools/install --path):$(PATH)

.PHONY: help
help: ## Tell what there is
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 20

.PHONY: build
build: $(binary) ## Build the program, static, for the image and for users

# Only here: with the flags of a development build's target, proc macros would have to be static too.
$(binary): export CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS := -C target-feature=+crt-static -C link-arg=-Wl,-z,pack-relative-relocs
$(binary): always
	cargo build --locked --release --target $(target)
	@! readelf --program-headers $@ | grep INTERP # an image FROM scratch has no loader

.PHONY: image
image: $(image) ## Build the image of controller and worker, as a tar

# Mozilla's roots as Debian packages them, and not the machine's bundle, to which somebody may have added his own.
$(image): $(binary) Dockerfile | tools
	@rm -rf $(context) target/buildah $@
	@mkdir -p $(context)
	@cp $(binary) $(context)/charon
	@LC_ALL=C; cat /usr/share/ca-certificates/mozilla/*.crt >$(context)/ca-certificates.crt
	buildah --root $(CURDIR)/target/buildah/root --runroot $(CURDIR)/target/buildah/run --storage-driver vfs \
		build --isolation chroot --timestamp 0 --quiet --file Dockerfile \
		--tag docker-archive:$@:charon.local/charon:$(version) $(context)
	@rm -rf target/buildah

.PHONY: crds
crds: tools ## Write the definitions of the resources from their types, to crds/ and into the chart
	UPDATE_CRDS=1 cargo nextest run --locked --lib -E 'test(the_files_in_crds_are_what_the_types_say)'
	cp crds/*.yaml charts/charon/files/crds/

.PHONY: lint
lint: tools ## Check format, lints, documentation, chart and scripts
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --locked --no-deps
	@diff -r crds charts/charon/files/crds || { echo 'the chart has other definitions than crds/: run make crds'; exit 1; }
	@diff <(sed -n 's/^\(appV\|v\)ersion: //p' charts/charon/Chart.yaml) <(printf '%s\n' $(version) $(version)) || \
		{ echo 'Chart.yaml has another version than Cargo.toml'; exit 1; }
	helm lint --strict --quiet charts/charon
	helm lint --strict --quiet charts/charon --set namespaced=true,crds.enabled=false,worker.securityContext=none,replicas=2
	shellcheck --external-sources $(scripts)

# The tests of the controller run inside a cluster of only a control plane, the journey inside a whole one (tests/cluster
# tells what each has). What they get:
#   PATH            kubectl, helm, crane, registry, ctr
#   KUBECONFIG      the cluster's administrator
#   CHARON_CLUSTER  the cluster's folder: its logs, its volumes (volumes/pv-0 to pv-15), what the source registry keeps
# and lifecycle (install, upgrade, uninstall) and journey, whose node has the image already, under the name that the chart
# takes by default:
#   CHARON_BIN      the program, static: the command line that they run
# Inside there is no network but the cluster's own, so all that Cargo does comes first.
.PHONY: test
test: lint $(image) ## Run every check and every test, on a real Kubernetes where it takes one
	tests/cluster/cluster build
	cargo nextest run --locked --no-run
	cargo test --locked --doc
	cargo nextest run --locked -E 'not binary(/^(controller|lifecycle|journey)$$/)'
	tests/cluster/cluster run --name test --control-plane -- cargo nextest run --locked --offline -E 'binary(controller)'
	CHARON_BIN=$(CURDIR)/$(binary) \
		tests/cluster/cluster run --name test -- \
		bash -c 'ctr images import $(image) && for binary in lifecycle journey; do \
			cargo nextest run --locked --offline -E "binary($$binary)" || exit; done'

.PHONY: demo
demo: ## Carry an image over an air gap: two registries, a courier, a real Kubernetes
ifeq ($(CLUSTER),current)
	@tests/demo/current '$(IMAGE)' '$(REGISTRY)'
else
	@tests/demo/demo
endif

.PHONY: bootstrap
bootstrap: $(image) | tools ## Make what brings Charon itself across: the program, and a payload with image and chart
	charts/bootstrap $(image) $(binary) target/bootstrap

.PHONY: bench
bench: $(image) | tools ## Measure charon beside docker-charon, crane and oras, and the controller beside an API server; draws docs/bench.svg
	benches/bench.py --svg docs/bench.svg
	tests/cluster/cluster run --name bench --control-plane -- benches/cluster.py

.PHONY: clean
clean: ## Remove what was built; the tests' tools stay in ~/.cache/charon
	cargo clean

.PHONY: tools
tools:
	@tests/tools/install

.PHONY: always
always:

# `make` lists what there is. CARGO_TARGET_DIR is respected when it is set.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

TARGET_DIR := $(abspath $(or $(CARGO_TARGET_DIR),target))
TAXIWAY := $(TARGET_DIR)/release/taxiway
WORKSPACES := Cargo.toml plugins/Cargo.toml

# $(call need,PROGRAM,DEBIAN_PACKAGES): installs it where that can be done unasked, else says what to install.
need = command -v $(1) >/dev/null || if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	apt-get update -q && apt-get install -qy --no-install-recommends $(2); \
	else echo "'$(1)' is missing: install it (on Debian or Ubuntu: sudo apt-get install $(2))" >&2; exit 1; fi

# $(call cargo_tool,SUBCOMMAND): a subcommand of cargo, built from crates.io when it is absent.
cargo_tool = cargo $(1) --version >/dev/null 2>&1 || cargo install cargo-$(1) --locked

.PHONY: help setup build run demo test kills bench bench-jobs bench-plugins bench-scale fmt lint deny advisories doc ci

help: ## list the targets
	@awk -F ': .*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## install what is missing to build: C compiler, Python, wasm target
	@$(call need,cc,gcc libc6-dev)
	@$(call need,python3,python3)
	@command -v cargo >/dev/null || { echo "cargo is missing: install Rust 1.95 or newer from https://rustup.rs" >&2; exit 1; }
	@test -d "$$(rustc --print target-libdir --target wasm32-wasip2)" || rustup target add wasm32-wasip2 || { \
		echo "The plugins are WebAssembly, and rustc has no wasm32-wasip2 target here." >&2; \
		echo "Run 'rustup target add wasm32-wasip2' where rustup and the network are at hand, or install your" >&2; \
		echo "distribution's package of the standard library for that target." >&2; exit 1; }

build: setup ## build the release binary
	cargo build --release --locked --package taxiway

run: build ## start the service here, with its data in DATA_DIR (ARGS are passed on)
	@data="$(or $(DATA_DIR),$${TAXIWAY_DATA_DIR:-$${XDG_STATE_HOME:-$$HOME/.local/state}/taxiway})"; listen="$(or $(LISTEN),127.0.0.1:8294)"; \
	printf '%s\n' '' "The admin token is in $$data/token. Once the service says that it is listening, paste this in another terminal:" '' \
		"  curl -H \"Authorization: Bearer \$$(cat $$data/token)\" -H 'Content-Type: application/json' \\" \
		"    -d '{\"name\": \"hello\", \"command\": [\"echo\", \"cleared for take-off\"]}' http://$$listen/api/v1/jobs" '' \
		"  $(TAXIWAY) --data-dir $$data ls" ''; \
	exec $(TAXIWAY) serve --data-dir "$$data" --listen "$$listen" $(ARGS)

demo: build ## show the whole story: refusal, diff, jobs in turn, signed webhook
	python3 tests/demo/demo.py --taxiway $(TAXIWAY)

test: setup ## run every test
	python3 -m unittest discover --start-directory tests/trainer
	@$(call cargo_tool,nextest) || echo "cargo-nextest cannot be installed here: cargo test runs the tests instead" >&2
	@if cargo nextest --version >/dev/null 2>&1; then nextest=yes; else nextest=; fi; set -x; \
	for workspace in plugins/Cargo.toml Cargo.toml; do \
		cargo test --locked --workspace --manifest-path $$workspace $${nextest:+--doc}; \
		$${nextest:+cargo nextest run --config-file .config/nextest.toml $${CI:+--profile ci} --locked --workspace --manifest-path $$workspace --no-fail-fast}; \
	done

kills: setup ## kill -9 service, shim and both in every state of a job, ROUNDS times each (100)
	TAXIWAY_TEST_ROUNDS=$(or $(ROUNDS),100) cargo test --locked --workspace --test e2e -- --nocapture kills::

bench: ## measure hand-over, submission, plugins and scale beside floors and aims; all of it, and it fails if one was missed
	@missed=; for part in bench-plugins bench-scale bench-jobs; do $(MAKE) $$part || missed="$$missed $$part"; done; \
	if [ -n "$$missed" ]; then echo "An aim was missed, or something failed, in:$$missed" >&2; exit 1; fi

bench-jobs: build ## measure hand-over and submission
	@$(call need,wrk,wrk)
	cargo build --release --locked --package taxiway-fake-nvml
	cargo build --release --locked --package taxiway --package taxiway-submission-floor
	python3 tests/bench/bench.py --taxiway $(TAXIWAY) --bare $(TARGET_DIR)/release/taxiway-submission-floor --nvml $(TARGET_DIR)/release/libtaxiway_fake_nvml.so --json $(TARGET_DIR)/bench.json

bench-plugins: setup ## measure what plugins cost, and what hostile ones do to others
	cargo build --release --locked --manifest-path plugins/Cargo.toml --package batch-limit --target wasm32-wasip2 --target-dir $(TARGET_DIR)/plugins
	python3 tests/bench/plugins.py --json $(TARGET_DIR)/bench-plugins.json -- \
		cargo bench --locked --package taxiway --package taxiway-plugin-host --bench call -- \
		$(TARGET_DIR)/plugins/wasm32-wasip2/release/batch_limit.wasm $(CURDIR)/tests/bench/batch-limit.toml

bench-scale: build ## measure a million waiting jobs, and an idle service
	python3 tests/bench/scale.py --taxiway $(TAXIWAY) --json $(TARGET_DIR)/bench-scale.json

fmt: ## check the formatting
	$(foreach workspace,$(WORKSPACES),cargo fmt --all --check --manifest-path $(workspace) &&) true

lint: setup ## clippy, where a warning is an error
	$(foreach workspace,$(WORKSPACES),cargo clippy --locked --workspace --all-targets --manifest-path $(workspace) -- -D warnings &&) true
	cargo clippy --locked --workspace --manifest-path plugins/Cargo.toml --target wasm32-wasip2 -- -D warnings

deny: ## check licences, bans and sources of all dependencies
	@$(call cargo_tool,deny)
	$(foreach workspace,$(WORKSPACES),cargo deny --locked --manifest-path $(workspace) --config $(CURDIR)/deny.toml check --hide-inclusion-graph bans licenses sources &&) true

advisories: ## ask RustSec about the dependencies (needs the network)
	@$(call cargo_tool,deny)
	$(foreach workspace,$(WORKSPACES),cargo deny --locked --manifest-path $(workspace) --config $(CURDIR)/deny.toml check --hide-inclusion-graph advisories &&) true

doc: setup ## build the documentation, where a warning is an error
	$(foreach workspace,$(WORKSPACES),RUSTDOCFLAGS='-D warnings' cargo doc --locked --workspace --no-deps --document-private-items --manifest-path $(workspace) &&) true

ci: ## what has to pass before a merge
	.ci/run

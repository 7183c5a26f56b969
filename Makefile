# Everything that is done with this tree. `make help` lists it.
.DEFAULT_GOAL := help
.PHONY: help setup demo test soak tracking guest lint clean

# A Rust that was installed moments ago may not be on the caller's PATH yet.
export PATH := $(PATH):$(HOME)/.cargo/bin
# The one build that tests, demo and emulated host share: nothing is built twice.
PROGRAMS = $(or $(CARGO_TARGET_DIR),target)/x86_64-unknown-linux-gnu/debug
# What is timed is built as it is shipped.
OPTIMISED = $(or $(CARGO_TARGET_DIR),target)/x86_64-unknown-linux-gnu/release
SECONDS ?= 600

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' Makefile | expand -t 16

setup: ## install what the others need (Debian packages, Rust)
	@resources/setup.sh

demo: setup ## a guest's cold memory leaves and comes back, with the figures
	@resources/kernel/build.sh >/dev/null
	@cargo build --quiet --workspace --bins
	@$(PROGRAMS)/ebb-demo

test: setup ## every test there is
	@resources/kernel/build.sh >/dev/null
	@resources/kernel/stock.sh >/dev/null
	@cargo build --workspace --bins --tests
	@$(PROGRAMS)/ebb-suite

soak: setup ## random eviction against a writing guest for SECONDS=600
	@cargo build --quiet --workspace --bins
	@$(PROGRAMS)/ebb-soak --seconds $(SECONDS)

tracking: setup ## how well trackers see, and what it costs
	@resources/kernel/build.sh >/dev/null
	@cargo build --quiet --workspace --bins
	@cargo build --quiet --release --package ebb-tests --bin ebb-tracking
	@$(OPTIMISED)/ebb-tracking

guest: setup ## a kernel and an initramfs to try `ebb run` with by hand
	@cargo build --quiet --workspace --bins
	@$(PROGRAMS)/ebb-guest

lint: ## formatting, clippy, and, where installed, cargo-deny and shellcheck
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	@if command -v cargo-deny >/dev/null; then cargo deny --all-features check; else echo "lint: cargo-deny is not installed, licences not checked"; fi
	@if command -v shellcheck >/dev/null; then git ls-files -co --exclude-standard -- '*.sh' .ci/run 'resources/initramfs/*' | xargs shellcheck; \
	  else echo "lint: shellcheck is not installed, scripts not checked"; fi

clean: ## remove what was built here; kernels stay in the cache
	cargo clean

# Sluice. `make help` lists the targets; README.md tells the story.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
CARGO ?= cargo
TARGET := $(or $(CARGO_TARGET_DIR),target)
LAB := $(TARGET)/release/sluice-lab

KERNELS ?= 5.10 6.1 6.12 newest
# Those that benchmarks run on, unless KERNELS is given.
BENCH_KERNELS := $(if $(filter file undefined,$(origin KERNELS)),6.1 6.12,$(KERNELS))

.PHONY: help setup build test test-largest fuzz test-kernels test-kernels-ci lab lab-up lab-status lab-shell lab-down bench bench-lists bench-program bench-kernels lint docs clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Install what Sluice is built with, as far as it is missing (Debian 12: as root)
	@tools/setup.sh

build: setup ## Build everything: target/release/sluice and target/release/sluice-lab
	$(CARGO) build --release --bins

test: setup ## Run all tests; as root also the privileged ones (packets through loaded programs, namespaces, the lab)
	@CARGO="$(CARGO)" tools/test.sh

test-largest: setup ## The largest instance that limits allow, with a million flows (root; optimised; some minutes on an idle machine)
	SLUICE_LARGEST=1 $(CARGO) test --release --package sluice --test daemon -- --nocapture the_largest_instance

fuzz: setup ## Look for packets on which memory, programs and oracle disagree (root; 20 minutes, or FUZZ_MINUTES=5; see tests/corpus/README.md)
	FUZZ_MINUTES=$(or $(FUZZ_MINUTES),20) $(CARGO) test --release --test fuzz -- --nocapture

test-kernels: build ## Run the privileged tests and the lab on other kernels, in virtual machines (root; KERNELS="6.1 6.12"; see docs/kernels.md)
	@CARGO="$(CARGO)" KERNELS="$(KERNELS)" TESTS="$(TESTS)" JOBS="$(JOBS)" tools/test-kernels.sh

test-kernels-ci: build ## Of test-kernels, what every change must pass: programs, packets and the lab on 6.1 and 6.12 (root; some seven minutes)
	@CARGO="$(CARGO)" KERNELS="6.1=load,programs,lab-device 6.12=load,wire,lab-program" JOBS=2 DOCUMENT= tools/test-kernels.sh

lab: build ## The whole thing on real traffic in network namespaces, checked as it goes (root; under a minute after the build)
	@$(LAB) run

lab-up: build ## Bring a lab up and leave it
	@$(LAB) up

lab-status: ## Show the lab that is up
	@$(LAB) status

lab-shell: ## A shell in a host of the lab that is up: make lab-shell HOST=client1
	@$(LAB) shell $(or $(HOST),client1)

lab-down: ## Remove the lab that is up
	@$(LAB) down

bench: setup ## Benchmark the lookup tables beside the paper's pseudo-code (several minutes; see docs/benchmarks.md)
	$(CARGO) bench --package sluice-maglev

bench-lists: setup ## What a list of a million sources costs: time and memory (root; a minute)
	$(CARGO) bench --package sluice --bench lists

bench-program: build ## Time the programs beside an empty and an encapsulating one (root; two minutes; see docs/benchmarks.md)
	@$(TARGET)/release/sluice-bench program --document docs/benchmarks.md

bench-kernels: build ## Count the instructions that kernels take to forward a packet, beside IPVS (root; KERNELS="6.12"; see docs/benchmarks.md)
	@KERNELS="$(BENCH_KERNELS)" tools/bench-kernels.sh

lint: setup ## What a change must pass besides the tests: format, clippy, documentation
	$(CARGO) fmt --check
	@tools/check-columns.sh
	$(CARGO) clippy --all-targets -- -D warnings
	$(CARGO) test --quiet --package sluice-modules
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --no-deps --quiet
	@if [ -x /usr/bin/cargo-clippy ] && [ -x /usr/bin/cargo ]; then \
		PATH=/usr/bin:$$PATH RUSTC_BOOTSTRAP=1 cargo clippy --package sluice-probes --target bpfel-unknown-none \
			--target-dir $(TARGET)/probes-lint -- -D warnings; \
	else \
		echo "lint: clippy skipped for probes/: it takes that of the compiler for the BPF target (Debian: rust-web-clippy)"; \
	fi

clean: ## Remove what was built here
	$(CARGO) clean

# Sluice. `make help` lists the targets; see README.md.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
CARGO ?= cargo
TARGET := $(or $(CARGO_TARGET_DIR),target)
LAB := $(TARGET)/release/sluice-lab

KERNELS ?= 5.10 6.1 6.12 newest
# The kernels of benchmarks, unless KERNELS is given.
BENCH_KERNELS := $(if $(filter file undefined,$(origin KERNELS)),6.1 6.12,$(KERNELS))

.PHONY: help setup build test test-largest fuzz test-kernels test-kernels-ci lab lab-up lab-status \
	lab-shell lab-down bench bench-acl bench-program bench-kernels lint clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Install missing build dependencies (Debian 12; root)
	@tools/setup.sh

build: setup ## Build target/release/sluice, sluice-lab and sluice-bench
	$(CARGO) build --release --bins

test: setup ## Run all tests; the privileged ones (programs, namespaces, lab) are skipped unless root
	@CARGO="$(CARGO)" tools/test.sh

test-largest: setup ## Test the largest configuration, and route changes with 40,000 backends (root; minutes)
	for test in the_largest_instance route_changes_delay_no_drain; do \
		SLUICE_LARGEST=1 $(CARGO) test --release --package sluice --test daemon -- --nocapture $$test; \
	done

fuzz: setup ## Compare packet path, loaded programs and oracle on random packets (root; FUZZ_MINUTES=20)
	FUZZ_MINUTES=$(or $(FUZZ_MINUTES),20) $(CARGO) test --release --test fuzz -- --nocapture

test-kernels: build ## Run privileged tests and lab on several kernels in VMs (root; hours; see docs/kernels.md)
	@CARGO="$(CARGO)" KERNELS="$(KERNELS)" TESTS="$(TESTS)" JOBS="$(JOBS)" tools/test-kernels.sh

test-kernels-ci: build ## Run programs, packets and lab on 6.1 and 6.12, as CI does (root; about 8 minutes)
	@CARGO="$(CARGO)" KERNELS="6.1=load,programs,daemon-tunnel,lab-device 6.12=load,wire,lab-program" JOBS=2 DOCUMENT= tools/test-kernels.sh

lab: build ## Run the lab: clients, balancers and backends in network namespaces (root; under a minute)
	@$(LAB) run

lab-up: build ## Set up a lab and keep it
	@$(LAB) up

lab-status: ## Show the state of the lab
	@$(LAB) status

lab-shell: ## Open a shell in a host of the lab (HOST=client1)
	@$(LAB) shell $(or $(HOST),client1)

lab-down: ## Remove the lab
	@$(LAB) down

bench: setup ## Benchmark lookup tables against the Maglev paper's pseudo-code (minutes)
	$(CARGO) bench --package sluice-maglev

bench-acl: setup ## Measure time and memory of a source ACL with a million prefixes (root; a minute)
	$(CARGO) bench --package sluice --bench acl

bench-program: build ## Time the programs, an empty one and a minimal encapsulating one (root; 2 minutes)
	@$(TARGET)/release/sluice-bench program --document docs/benchmarks.md

bench-kernels: build ## Count instructions per forwarded packet in VMs, also of IPVS (root; KERNELS="6.12")
	@KERNELS="$(BENCH_KERNELS)" tools/bench-kernels.sh

lint: setup ## Run all checks but the tests: format, text, clippy, import cycles, documentation
	$(CARGO) fmt --check
	@tools/check-columns.sh
	@tools/check-language.pl
	$(CARGO) clippy --all-targets -- -D warnings
	$(CARGO) test --quiet --package sluice-modules
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --no-deps --quiet
	@if [ -x /usr/bin/cargo-clippy ] && [ -x /usr/bin/cargo ]; then \
		PATH=/usr/bin:$$PATH RUSTC_BOOTSTRAP=1 cargo clippy --package sluice-probes \
			--target bpfel-unknown-none --target-dir $(TARGET)/probes-lint -- -D warnings; \
	else \
		echo "lint: clippy skipped for probes/: needs the BPF compiler's (Debian: rust-web-clippy)"; \
	fi

clean: ## Remove build artefacts
	$(CARGO) clean

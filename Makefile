# Everything runs as root on a Debian 12 machine with Rust; each target sets up what it needs.

LIBRARY := target/extvol/libextvol.so
MESOS := target/mesos/libmesos.so

.PHONY: help demo test cluster cluster-down build setup sanitize check bench

help:
	@echo "make demo          the main job, on a cluster of real Mesos hosts on this machine"
	@echo "make test          all tests"
	@echo "make cluster       a cluster of two agents to play with; make cluster-down ends it"
	@echo "make bench         what it costs; BENCH=--short takes fewer samples"
	@echo "make check         formats, lints, documentation, C++ under two compilers"
	@echo "make build         target/extvol/libextvol.so and target/release/extvol-keeper"
	@echo "make sanitize      the same library with sanitizers, target/extvol-sanitized, which the tests run"

demo: build
	@target/release/extvol-demo

test: build sanitize
	@cargo nextest run --release --workspace --all-features

cluster: build
	@target/release/extvol-cluster up --agents 2 --driver ebs --modules

cluster-down:
	@target/release/extvol-cluster down

bench: build
	@target/release/extvol-bench-agent $(BENCH)
	@target/release/extvol-bench-master $(BENCH)

setup:
	@integration/setup

build: setup
	@test -e target/release/extvol-keeper || echo "build: compiling; the first time takes some minutes"
	@cargo build --quiet --release
	@cxx-glue/link --mesos $(MESOS) target/release/libcxx_glue.a $(LIBRARY)

sanitize: build
	@integration/sanitize

check: build
	cargo fmt --all --check
	cargo clippy --quiet --release --workspace --all-targets --all-features -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --quiet --release --no-deps --workspace --all-features
	cxx-glue/check release

# Everything runs as root on a Debian 12 machine with Rust; each target sets up what it needs.

LIBRARY := target/extvol/libextvol.so
MESOS := target/mesos/libmesos.so

.PHONY: help demo demo-host-death demo-partition demo-agent-restart demo-etl test cluster cluster-down build setup sanitize check bench simulate model model-large mutants fuzz

RUNS := 20000
SEED := 1
FAULT := agent
ROWS := 1000000
PERCENT := 40
SECONDS := 60

help:
	@echo "make demo          the main job, on a cluster of real Mesos hosts on this machine"
	@echo "make demo-host-death, demo-partition, demo-agent-restart   one fault under a writing task"
	@echo "make demo-etl      a database job whose agent is killed; FAULT=agent|host|partition|none ROWS=1000000 RUNS=1 SEED=1"
	@echo "make test          all tests"
	@echo "make cluster       a cluster of two agents to play with; make cluster-down ends it"
	@echo "make bench         what it costs; BENCH=--short takes fewer samples"
	@echo "make check         formats, lints, documentation, C++ under two compilers"
	@echo "make simulate      RUNS=20000 simulated schedules of the protocol core, from SEED=1"
	@echo "make model         all orders of events of a small cluster; make model-large tries larger ones (NAME: some)"
	@echo "make mutants       NAMES= seeded mistakes in copies of the core, all or these, must be found; writes docs/mutants.md"
	@echo "make fuzz          every parser of foreign bytes, SECONDS=60 for all of them; the first time it compiles for some minutes"
	@echo "make build         target/extvol/libextvol.so and target/release/extvol-keeper; the image of demo-etl"
	@echo "make sanitize      the same library with sanitizers, target/extvol-sanitized, which the tests run"

demo: build
	@target/release/extvol-demo

demo-host-death: build
	@target/release/extvol-demo host

demo-partition: build
	@target/release/extvol-demo partition

demo-agent-restart: build
	@target/release/extvol-demo restart

# RUNS is one here, unless it is asked for.
demo-etl: RUNS := 1
demo-etl: build
	@target/release/extvol-demo-etl --fault $(FAULT) --rows $(ROWS) --runs $(RUNS) --seed $(SEED) --percent $(PERCENT)

test: build sanitize
	@cargo nextest run --release --workspace

cluster: build
	@target/release/extvol-cluster up --agents 2 --driver ebs --modules

cluster-down:
	@target/release/extvol-cluster down

bench: build
	@target/release/extvol-bench-agent $(BENCH)
	@target/release/extvol-bench-master $(BENCH)
	@target/release/extvol-bench-lost $(BENCH)
	@target/release/extvol-bench-fence $(BENCH)

simulate: build
	@target/release/extvol-simulate $(RUNS) $(SEED)

model:
	@cargo test --quiet --release --workspace --test model -- --nocapture

model-large:
	@EXTVOL_MODEL_LARGE="$(NAME)" cargo test --quiet --release --workspace --test model -- --nocapture within_larger

mutants: build
	@target/release/extvol-mutants $(NAMES)

fuzz:
	@integration/fuzz/run $(SECONDS)

setup:
	@integration/setup

build: setup
	@test -e target/release/extvol-keeper || echo "build: compiling; the first time takes some minutes"
	@cargo build --quiet --release
	@cxx-glue/link --mesos $(MESOS) target/release/libcxx_glue.a $(LIBRARY)
	@integration/etl/image

sanitize: build
	@integration/sanitize

check: build
	cargo fmt --all --check
	cargo clippy --quiet --release --workspace --all-targets -- -D warnings
	@# The core has nothing to do I/O with.
	@test "$$(cargo tree --package protocol --edges normal --prefix none | sort -u | wc -l)" -lt 15 || \
		{ echo "the protocol crate has 15 packages or more beneath it"; exit 1; }
	RUSTDOCFLAGS="-D warnings" cargo doc --quiet --release --no-deps --workspace
	cxx-glue/check release

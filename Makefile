# What people run. `make test` is the whole check that a change must pass; `make test-full` adds the slow ones.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
export AEGIS_CACHE ?= $(HOME)/.cache/aegis
TARGET_DIR := $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)
export AEGIS_BIN := $(TARGET_DIR)/release/aegis
CARGO_FLAGS := --release --locked
FUZZ_SECONDS ?= 300
# What scripts/phases.py says on the command line: not what a shell happens to have under these names.
BUILT :=
EXCHANGES :=
# What only compiles or computes, without a deadline, lets those go first who wait for an answer beside it.
YIELDING := nice -n 10
# Many tests of the crates wait: for a server, a deadline, a kill. Twice as many at a time as there are cores.
TEST_THREADS := $(shell echo $$((2 * $$(nproc))))
# Of end-to-end groups, which wait three quarters of their time, one more than that of cores.
GROUPS_BESIDE := $(shell echo $$((1 + $$(nproc))))
export RUST_TEST_THREADS ?= $(TEST_THREADS)

.PHONY: help setup setup-system setup-tools build test test-full lint test-rust test-rust-full test-rules test-judge test-judge-full test-judge-flink test-judge-flink-full test-patterns test-patterns-full test-canonical corpus fuzz-corpus test-e2e test-e2e-debian test-e2e-current test-kills test-openapi test-fleet test-fleet-debian test-fleet-current test-sdks test-sdk-python test-sdk-typescript test-sdk-go test-demo deny fleet fleet-down bench bench-detect bench-flink bench-sdks fmt

help: ## this list
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 24

setup: ## installs what the tests need (Debian packages as root; nothing where it is there)
	@scripts/setup.sh

setup-system: # what the build itself needs
	@scripts/setup.sh system

setup-tools: # servers that the tests start; beside the build
	@scripts/setup-tools.sh

# In `make test` it is built, and cargo is at work beside (BUILT); what the end-to-end tests said is kept for test-openapi (EXCHANGES).
build: ## the program, as users build it
	$(if $(BUILT),@:,cargo build $(CARGO_FLAGS))

test: setup-system ## everything a change must pass, and at the end how long each phase took
	@scripts/phases.py

test-full: setup-system ## the slow checks too, whatever fails: more random logs for detection, 50 kills under load, every fault of a fleet, languages fuzzed, licences and advisories
	@scripts/phases.py full

lint: ## format, clippy, no SQL engine under the edge-only build
	cargo fmt --all --check
	$(YIELDING) cargo clippy $(CARGO_FLAGS) --workspace --all-targets -- -D warnings
	scripts/check-edge-only.sh
	scripts/check-no-raw-value.sh

test-rust: ## unit, property and integration tests of every crate
	$(YIELDING) cargo test $(CARGO_FLAGS) --workspace --no-run
	cargo test $(CARGO_FLAGS) --workspace

test-rust-full: ## the laws of detection by more random logs than `make test` takes; what the bus keeps, where a disk that cannot be mounted is a failure
	$(YIELDING) cargo test $(CARGO_FLAGS) --workspace --test detect --test bus --no-run
	PROPTEST_CASES=128 cargo test $(CARGO_FLAGS) --workspace --test detect
	AEGIS_MUST_MOUNT=yes cargo test $(CARGO_FLAGS) --workspace --test bus --test ledger refused

test-rules: build ## the tests beside the shipped detection rules, on the real engine
	$(AEGIS_BIN) rules test rules

test-judge: build ## DuckDB's answer over random histories against the engine's, for every shipped rule that is no row pattern and for random ones
	AEGIS_SEED=$${AEGIS_SEED:-1} tests/judge/run.sh --histories 3 --random 16

test-judge-full: build ## the same over more histories, and more random rules
	$(YIELDING) tests/judge/run.sh --histories 40 --random 300

test-judge-flink: build ## Apache Flink's matches of random row patterns against the engine's (fetched, 330 MB; wants a JDK 17)
	AEGIS_SEED=$${AEGIS_SEED:-1} tests/judge/run.sh flink

test-judge-flink-full: build ## the same, more of them
	$(YIELDING) tests/judge/run.sh flink --patterns 300 --rules 200

test-patterns: build ## row patterns by Trino's own cases, which Maven fetches (skipped, and said to be, where there is no Maven)
	tests/patterns/run.sh --if-there

test-patterns-full: build ## the same, and no Maven is a failure
	$(YIELDING) tests/patterns/run.sh

test-canonical: build ## the canonicalisation corpus against two independent RFC 8785 libraries
	tests/canonical/run.sh

corpus: build ## the corpus against every language: the same bytes, reasons and verdicts from Rust, Python, TypeScript and Go
	tests/corpus/run.sh

fuzz-corpus: build ## differential fuzzing of the canonical form and of receipts between the languages (FUZZ_SECONDS each)
	$(YIELDING) tests/corpus/run.sh fuzz --seconds $(FUZZ_SECONDS)
	$(YIELDING) tests/corpus/run.sh fuzz --receipts --seconds $(FUZZ_SECONDS)

test-e2e: build ## the real program over HTTP: every GitHub webhook payload, bad input, faults; some of it over NATS
	tests/e2e/run.sh --jobs $(GROUPS_BESIDE) $(if $(EXCHANGES),--record "$(EXCHANGES)")
	AEGIS_E2E_NATS=debian tests/e2e/run.sh containment kills

test-e2e-debian: build ## every group over Debian's NATS server
	AEGIS_E2E_NATS=debian tests/e2e/run.sh --jobs $(GROUPS_BESIDE)

test-e2e-current: build ## every group over the current one, with 50 kills under load
	AEGIS_E2E_NATS=current AEGIS_KILLS=50 tests/e2e/run.sh --jobs $(GROUPS_BESIDE)

test-kills: build ## 50 kills under load of the one program
	AEGIS_KILLS=50 tests/e2e/run.sh kills

test-fleet: build ## a fleet (three NATS servers, control, two edges) under load, and some of its processes killed
	tests/fleet/run.sh short

test-fleet-debian: build ## the same with every fault there is, on Debian's NATS servers
	AEGIS_FLEET_NATS=debian tests/fleet/run.sh

test-fleet-current: build ## the same on the current ones
	AEGIS_FLEET_NATS=current tests/fleet/run.sh

fleet: setup build ## a fleet to play with, in the background below fleet-data/
	@python3 tests/fleet/play.py up

fleet-down: ## stops it and removes its folder
	@python3 tests/fleet/play.py down

test-openapi: build ## docs/openapi.yaml against the routes of the source and real answers of the real program; the schema of a rule's header
	tests/openapi/run.sh $(EXCHANGES)

test-sdks: test-sdk-python test-sdk-typescript test-sdk-go ## the SDKs: lint, types, packages, and tests against the real program

test-sdk-python: build
	sdks/python/test.sh

test-sdk-typescript: build
	sdks/typescript/test.sh

test-sdk-go: build
	sdks/go/test.sh

test-demo: build ## the demo, as README shows it
	$(AEGIS_BIN) demo

deny: ## licences, sources and advisories of what is built in
	scripts/deny.sh

bench: build ## authorize against a bare echo, and event to alert; prints a table and writes bench/out/*.json
	$(TARGET_DIR)/release/aegis-bench

bench-detect: build ## the detection engine by itself, and its window rules in DuckDB; prints tables and writes bench/out/{detect,duckdb}.json
	$(TARGET_DIR)/release/aegis-bench detect
	python3 bench/duckdb.py

bench-flink: build ## two rules by the detection engine and by Apache Flink (fetched, 330 MB; wants a JDK); prints a table and writes bench/out/flink.json
	python3 bench/flink/run.py

bench-sdks: build ## what the SDKs add to a bare call, and their canonical form; prints a table and writes bench/out/sdk-*.json
	bench/sdk/run.sh

fmt: ## formats the Rust code
	cargo fmt --all

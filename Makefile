# What people do here. `make` alone lists it.
.DEFAULT_GOAL := help
.PHONY: help test test-parts check dashboards metrics pictures faults soak stack bench demo

help: ## list these targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

test: test-parts ## run every test (installs the real parts that they start)
	@if cargo nextest --version >/dev/null 2>&1; then \
		cargo nextest run --locked && cargo test --locked --doc; \
	else \
		cargo test --locked; \
	fi

test-parts: ## install what the tests start: Prometheus, an authorization server, an OTLP receiver, Docker Compose
	@tests/support/install

check: ## format, lints, documentation, licences; all warnings are errors
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps
	@cargo deny --version >/dev/null 2>&1 || cargo install cargo-deny --locked --debug
	cargo deny check --hide-inclusion-graph bans licenses sources

dashboards: dashboards/generator/node_modules ## write the Grafana dashboards anew, after a change in dashboards/generator
	npm --prefix dashboards/generator run --silent generate

dashboards/generator/node_modules: dashboards/generator/package-lock.json
	npm --prefix dashboards/generator ci --silent
	@touch $@

metrics: test-parts ## write docs/metrics.md from a real /metrics, the alerts and the dashboards
	METRICS=write cargo nextest run --locked metrics::

faults: test-parts ## cause every fault and write what it cost into docs/faults.md
	FAULTS=write cargo nextest run --locked

soak: test-parts ## keep 500 tokens alive while everything goes wrong (SOAK_MINUTES=5, SOAK_SEED=any)
	cargo test --locked --test main -- --ignored --exact soak::soak --nocapture

stack: ## build the image and start docker-compose.yml on a Docker engine of its own (as root)
	tests/stack/run

bench: ## run the benchmarks (release build)
	cargo bench --locked

demo: ## keep three tokens alive before your eyes (release build; Ctrl-C ends it)
	cargo run --locked --release -- demo

pictures: ## draw dashboards with live data into docs/ (a quarter of an hour; needs Chromium, Prometheus, Node)
	cargo build --locked
	npm --prefix dashboards/pictures ci --silent
	node dashboards/pictures/all.mjs

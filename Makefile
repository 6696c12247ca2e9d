# The few commands of this repository. `make` alone lists them.

# A path in NATS_SERVER, GRPCURL or PROMTOOL is taken as it is; else tools/install finds or installs the tool.
NATS := NATS_SERVER=$${NATS_SERVER:-$$(tools/install nats-server)} && export NATS_SERVER
CARGO_OUT := $${CARGO_TARGET_DIR:-target}
# Cargo's profile for `make run`. dev compiles in a third of the time that release takes.
PROFILE := dev
PROFILE_OUT = $(CARGO_OUT)/$(if $(filter dev,$(PROFILE)),debug,$(PROFILE))
# Scenarios mostly wait, so one more than there are cores runs at a time.
TEST_THREADS := $$(( $$(nproc) + 1 ))
# Whether `$(call can_have,TOOL)` is there, or can be installed by Go. With CI=true nothing is skipped: what cannot be installed fails.
can_have = [ "$$CI" = true ] || { command -v $(1) || command -v go; } >/dev/null
# Scenarios that cannot be run with least privilege, as arguments of the test binary.
LEAST_PRIVILEGE_SKIPS := $$(sed -n 's/^\([a-z_:]*\) .*/--skip \1/p' tests/least-privilege.skip)
# All but the tests.
PROGRAMS := -p waybill -p waybill-gateway -p waybill-processor -p waybill-payment-sandbox

.PHONY: help run observe test least-privilege soak upgrade golden lint prose breaking version rules lint-deploy bench release

help: ## list these targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1	/p' Makefile

run: ## start the whole system on this machine; ARGS goes to `waybill dev`, PROFILE=release compiles longer and runs faster
	@$(NATS) && \
	cargo build $(PROGRAMS) --profile $(PROFILE) --locked && \
	exec "$(PROFILE_OUT)/waybill" dev $(ARGS)

observe: ## the same with Jaeger and Prometheus beside it; the first time it installs them, which takes minutes
	@$(NATS) && \
	JAEGER=$${JAEGER:-$$(tools/install jaeger)} && export JAEGER && \
	PROMETHEUS=$${PROMETHEUS:-$$(tools/install prometheus)} && export PROMETHEUS && \
	cargo build $(PROGRAMS) --profile $(PROFILE) --locked && \
	exec "$(PROFILE_OUT)/waybill" dev --observe $(ARGS)

test: ## build everything, then run all tests against a real nats-server
	@$(NATS) && \
	if [ -z "$$GRPCURL" ] && { $(call can_have,grpcurl); }; then \
		GRPCURL=$$(tools/install grpcurl) && export GRPCURL || exit; \
	fi && \
	if [ -z "$$PROMTOOL" ] && { $(call can_have,promtool); }; then \
		PROMTOOL=$$(tools/install promtool) && export PROMTOOL || exit; \
	fi && \
	export RUST_TEST_THREADS=$${RUST_TEST_THREADS:-$(TEST_THREADS)} && \
	cargo build --workspace --locked && \
	cargo test --workspace --locked && \
	LEAST_PRIVILEGE=1 cargo test --workspace --locked --test scenarios -- $(LEAST_PRIVILEGE_SKIPS) order_path crash_points redriving && \
	cargo test --workspace --locked --test scenarios no_user_may -- --nocapture --test-threads 1

least-privilege: ## run the scenarios with each program as a user of its own at the broker, who may do what it has to
	@$(NATS) && \
	cargo build --workspace --locked && \
	echo 'skipped:' && sed '/^#/d; s/ /: /' tests/least-privilege.skip && \
	LEAST_PRIVILEGE=1 cargo test --workspace --locked --test scenarios -- $(LEAST_PRIVILEGE_SKIPS)

soak: ## run 10,000 orders through outages, one of them longer than the retention, then SCHEDULES (20) random schedules, and cancels against each step; some 25 minutes
	@$(NATS) && \
	cargo build --workspace --locked && \
	export SCHEDULES=$${SCHEDULES:-20} && \
	cargo test -p waybill-tests --locked --test scenarios -- --include-ignored --nocapture --test-threads 1 \
		ten_thousand random_schedules route_races

upgrade: ## roll from another version (REV, by default the last release) to this one and back, under load
	@$(NATS) && \
	tools/upgrade $(REV)

golden: ## write what this version stores into tests/golden, once for each version that stores something new
	@$(NATS) && \
	cargo build --workspace --locked && \
	cargo test --workspace --locked --test scenarios -- --include-ignored --exact golden::write::write

lint: version prose rules breaking ## check format, prose, code, contract, dependencies, version, rules and all of lint-deploy
	cargo fmt --all --check
	cargo fmt --manifest-path fuzz/Cargo.toml --check
	@tools/check-imports
	cargo clippy --workspace --all-targets --locked -- -D warnings
	@buf=$$(tools/install buf) && set -x && "$$buf" lint
	@deny=$$(tools/install cargo-deny) && set -x && "$$deny" --locked check --hide-inclusion-graph bans licenses sources
	@deny=$$(tools/install cargo-deny) && \
	if "$$deny" fetch db 2>/dev/null; then \
		set -x && "$$deny" --locked check advisories; \
	else \
		echo 'advisories skipped: the database cannot be fetched here'; \
	fi
	@tools/lint-deploy

lint-deploy: ## check images, compose file, broker configuration and Helm chart alone
	@tools/lint-deploy

breaking: ## check that the contract breaks nobody who uses that of the last release
	@tag=$$(git describe --tags --abbrev=0 --match 'v*' 2>/dev/null); \
	if [ -z "$$tag" ]; then \
		echo 'breaking skipped: no release has been tagged yet'; \
		exit; \
	fi; \
	buf=$$(tools/install buf) && set -x && \
	git archive "$$tag" buf.yaml proto | "$$buf" breaking --against '-#format=tar'

prose: ## check the English of documentation and of doc comments
	@tools/prose --self-test
	@tools/prose

version: ## check that everything has the version of Cargo.toml
	@tools/check-version

rules: ## check Prometheus' configuration, and test its rules
	@if [ -z "$$PROMTOOL" ] && ! { $(call can_have,promtool); }; then \
		echo 'rules skipped: it takes promtool, or go to install it'; \
		exit; \
	fi; \
	promtool=$${PROMTOOL:-$$(tools/install promtool)} && cd deploy/observability/prometheus && set -x && \
	"$$promtool" check config prometheus.yml && \
	"$$promtool" test rules tests/*.test.yml

bench: ## measure; the release build comes first
	@$(NATS) && \
	cargo build --workspace --release --locked && \
	cargo bench --workspace --locked --bench create_order --bench order_path --bench edge --bench footprint --bench storage --bench traces --bench growth

release: ## build what a release consists of, into target/packages
	@tools/release

# make help says what there is. Variables, from the environment or the command line:
#   PKGS       packages to check and test        (./...)
#   RACE       empty where there is no cgo       (-race)
#   FUZZTIME   per fuzz target                   (60s)
#   TESTFLAGS  further flags for go test

PKGS     ?= ./...
RACE     ?= -race
FUZZTIME ?= 60s

GOTEST = go test $(RACE) $(TESTFLAGS)

# Modules of their own, so that who uses the library does not get what they need. Each is checked and tested as this one is.
MODULES = $(patsubst %/go.mod,%,$(wildcard adapters/*/go.mod examples/*/go.mod))

.PHONY: help demo test modules setup lint vet fmt staticcheck bench fuzz soak faults cover clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' Makefile

demo: ## the whole move on this machine, nothing else installed
	go run ./cmd/sessile demo

# -shuffle keeps go test from using cached results, so the list of what was skipped is whole.
test: setup lint ## all checks and tests; says at the end what was skipped for want of a server
	@failed= && skips=$$(mktemp) && trap 'rm -f "$$skips"' EXIT && \
	echo '$(GOTEST) -shuffle=on -timeout 40m $(PKGS)' && \
	{ SESSILE_SKIPS=$$skips $(GOTEST) -shuffle=on -timeout 40m $(PKGS) || failed=1; } && \
	{ SESSILE_SKIPS=$$skips $(MAKE) -s modules || failed=1; } && \
	if [ -s "$$skips" ]; then \
		echo; echo 'Skipped, since it is not on this machine (scripts/setup.sh installs it):'; \
		sort -u "$$skips" | awk -F '\t' '{ tests[$$1]++; if (!seen[$$1, $$2]++) where[$$1] = where[$$1] " " $$2 } \
			END { for (want in tests) printf "  %s: %d tests of%s\n", want, tests[want], where[want] }' | sort; \
	fi && \
	[ -z "$$failed" ]

modules: ## checks and tests of adapters and examples that are modules of their own, and of the library beside others
	@failed=; for dir in $(MODULES); do \
		echo "$$dir"; \
		( cd $$dir && go vet ./... && unformatted=$$(gofmt -l .) && [ -z "$$unformatted" ] && $(GOTEST) -shuffle=on -timeout 20m ./... && \
			{ [ ! -x $(CURDIR)/.bin/staticcheck ] || $(CURDIR)/.bin/staticcheck ./...; } ) || failed=1; \
	done; \
	echo 'bench: the library beside others'; (cd bench && go vet ./... && $(GOTEST) -run Library .) || failed=1; \
	[ -z "$$failed" ]

setup: ## install the servers that the tests need (Debian, as root)
	@scripts/setup.sh

lint: vet fmt staticcheck ## go vet, gofmt, staticcheck

vet:
	go vet $(PKGS)

fmt:
	@dirs=$$(go list -f '{{.Dir}}' $(PKGS)) && unformatted=$$(gofmt -l $$dirs | sort -u) && if [ -n "$$unformatted" ]; then \
		echo 'gofmt would change:'; echo "$$unformatted"; exit 1; \
	fi

# Without staticcheck the other checks still count at a desk, not in CI.
staticcheck:
	@if (cd tools && go build -o ../.bin/staticcheck honnef.co/go/tools/cmd/staticcheck); then \
		echo 'staticcheck $(PKGS)' && .bin/staticcheck $(PKGS); \
	else \
		echo 'staticcheck cannot be had'; [ "$${CI:-false}" = false ]; \
	fi

# A module of its own; docs/performance.md and docs/library-performance.md say what it measures. BENCHFLAGS: -only gateway|failover|php|page|backfill|sql|memcached|library, -rounds, -short.
# Benchmarks of single packages: go test -run '^$$' -bench . ./store/redis
bench: ## Sessile side by side with what one would use instead; about twenty minutes
	cd bench && go run . $(BENCHFLAGS)

# go test -list prints the names found in a package, then a line with the package.
fuzz: ## every fuzz target for FUZZTIME
	@failed=; for dir in . $(if $(filter ./...,$(PKGS)),$(MODULES)); do \
		list=$$(cd $$dir && go test -list '^Fuzz' $(PKGS)) || { echo "$$list"; exit 1; }; \
		for target in $$(echo "$$list" | awk '/^Fuzz/ { f[n++] = $$1 } /^ok/ { for (i = 0; i < n; i++) print $$2 "=" f[i]; n = 0 }'); do \
			echo "$${target#*=} in $${target%=*}"; \
			(cd $$dir && go test -run '^$$' -fuzz "^$${target#*=}\$$" -fuzztime $(FUZZTIME) $(TESTFLAGS) "$${target%=*}") || failed=1; \
		done; \
	done; \
	[ -z "$$failed" ]

soak: setup ## six hundred simulated runs of each kind (SESSILE_TRACE=1 tells the story of one that fails); ten minutes
	SESSILE_SOAK=1 go test $(TESTFLAGS) -count 1 -v -timeout 12h -run 'TestSimulation$$' ./migrate
	SESSILE_SOAK=1 go test $(TESTFLAGS) -count 1 -v -timeout 2h -run "TestRecoveryInASimulation|TestConformanceOfACluster" ./store/redis
	SESSILE_SOAK=1 $(GOTEST) -count 1 -v -timeout 2h -run 'TestNobodyGetsAnothersAnswer$$' ./internal/gateway
	SESSILE_SOAK=1 go test $(TESTFLAGS) -count 1 -v -run TestAClusterOfThree ./store/cassandra
	SESSILE_SOAK=1 $(GOTEST) -count 1 -v -timeout 2h -run "TestAnythingAtAll|TestASessionIsLinearizable" .

# FAULTFLAGS: -rows 4,6, -runs 2, -keep FILE (go on where a run was interrupted), -table ../docs/faults.md.
faults: setup ## servers and gateways killed for real, and every guard switched off, with the tables that come of it; two hours
	SESSILE_SOAK=1 $(GOTEST) -count 1 -v -timeout 2h -run 'TestRequestTracker$$' ./cmd/sessile
	SESSILE_SOAK=1 $(GOTEST) -count 1 -v -timeout 2h -run 'Killed|TheTarget|EmptyTarget|EveryZero|EveryMissingGuard|PHPSite' ./internal/demo ./migrate
	cd bench && go test -count 1 -v -timeout 4h -run 'Fault|SlotOf|Goals' . -runs 20 $(FAULTFLAGS)

cover: setup ## test coverage over all packages
	@mkdir -p .bin
	go test -coverprofile .bin/cover.out -coverpkg ./... $(TESTFLAGS) $(PKGS)
	go tool cover -func .bin/cover.out | tail -n 1

clean: ## remove what make built
	rm -rf .bin dist

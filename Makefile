# Waybill's commands. `make` alone lists them. Python 3.11+ (with venv) and make are all they need.
PYTHON ?= python3
# Passed on to the command where it says so, for example: make psql ARGS="-c 'select 1'"
ARGS ?=
# A folder of public dispatch instances, for `make bench`.
INSTANCES ?=

.DEFAULT_GOAL := help
.PHONY: help up demo drill psql receiver test soak bench check lock clean

help: ## List these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' Makefile

up: .venv/run.stamp ## Run the whole stack in the foreground: PostgreSQL, Temporal, workers, API (Ctrl-C stops it)
	@exec .venv/bin/python -m local.up

demo: .venv/demo.stamp ## Drive 500 real shopping baskets through the running stack (ARGS="--baskets 100 --seed 2")
	@exec .venv/bin/python -m local.demo $(ARGS)

drill: .venv/run.stamp ## Stage an incident of RUNBOOK.md on the running stack: NAME=poison|outage|drift|stuck|conflicts
	@exec .venv/bin/python -m local.drills $(NAME) $(ARGS)

psql: .venv/run.stamp ## Open psql on the running stack's database (ARGS="-c 'select 1'")
	@exec .venv/bin/python -m local.psql $(ARGS)

receiver: .venv/run.stamp ## Print the events sent to http://127.0.0.1:9099/ (ARGS=9100 for another port)
	@exec .venv/bin/python -m local.receiver $(ARGS)

test: .venv/dev.stamp ## Run every test on throw-away servers, in two processes (ARGS="-k orders -x")
	@exec .venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

soak: .venv/dev.stamp ## Run what takes minutes: plans over a million reservations, races, kills and faults (ARGS="--seed 2")
	@.venv/bin/python -m soak.plans
	@.venv/bin/python -m soak.inventory $(ARGS)
	@.venv/bin/python -m soak.assignment $(ARGS)
	@.venv/bin/python -m soak.email $(ARGS)
	@.venv/bin/python -m soak.outbox $(ARGS)

bench: .venv/bench.stamp ## Measure dispatch (INSTANCES=folder: on a city's days too) and the outbox, in minutes (ARGS=--quick for one)
	@.venv/bin/python -m bench.dispatch --solver $(INSTANCES)
	@exec .venv/bin/python -m bench.outbox $(ARGS)

check: .venv/dev.stamp ## Check format, lint, types and import rules
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/lint-imports --no-logo

lock: .venv/dev.stamp ## Re-make requirements/*.txt from *.in (ARGS=--upgrade for the latest versions)
	cd requirements && for name in run dev bench "demo --no-deps"; do \
		set -- $$name; \
		../.venv/bin/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 \
			--no-emit-index-url --no-emit-find-links --no-header $(ARGS) $$2 $$1.in -o $$1.txt || exit 1; \
	done

clean: ## Remove .venv (the data dir stays)
	rm -rf .venv

# A stamp is newer than the requirements it stands for once they are installed. The umask is for PostgreSQL's programs:
# root starts them as another user.
define install
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo 'Waybill needs Python 3.11 or newer as "$(PYTHON)"; to use another one: make PYTHON=python3.12 $(MAKECMDGOALS)' >&2; \
		exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo '"$(PYTHON)" lacks its venv module: install it (Debian and Ubuntu: apt-get install python3-venv).' >&2; \
		exit 1; }
	@umask 022 && { .venv/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv; }
	@echo 'Installing $(1) into .venv' >&2
	@umask 022 && .venv/bin/python -m pip --disable-pip-version-check --no-input \
		install -qq --require-hashes $(2) -r $(1)
endef

.venv/run.stamp: requirements/run.txt
	$(call install,requirements/run.txt)
	@touch $@

# Everything of run.txt is in dev.txt as well.
.venv/dev.stamp: requirements/dev.txt
	$(call install,requirements/dev.txt)
	@touch .venv/run.stamp $@

# The same of bench.txt, and where dev.txt names the same package, it is the same version.
.venv/bench.stamp: requirements/bench.txt
	$(call install,requirements/bench.txt)
	@touch .venv/run.stamp $@

.venv/demo.stamp: requirements/demo.txt .venv/run.stamp
	$(call install,requirements/demo.txt,--no-deps)
	@touch $@

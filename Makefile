# flowray: `make demo` and `make test` do all the set-up themselves; nothing but git, Python 3.11 and make is needed.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
SEEDS  ?= 3000
# Of `make chaos-long`: 15 make the nightly counts of agents, coordinators and nodes.
ROUNDS ?= 15
HOURS  ?= 50000
OUT    ?= out/audit
# What `make demo` audits: the standard library of the Python it runs on (without its own test suites).
INPUT  ?= $(shell $(PYTHON) -c "import sysconfig; print(sysconfig.get_path('stdlib'))")

# What the shipped router is made of: the sets whose licences let their weights be passed on.
DATA        ?= ../shared/data
ROUTER_DATA := $(foreach set,llmrouter_mix mmlu_pro_matrix routellm_pairs intent_clinc150,--data $(DATA)/$(set))

.PHONY: demo test test-fast test-ray chaos chaos-long crash-points check format sim hours mutants journals bench router docs clean help

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(VENV)/.run: pyproject.toml constraints.txt
	@echo "setting up the environment ..."; start=$$(date +%s); \
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV); \
	$(PIP) --editable '.[audit]' && touch $@ && echo "environment ready in $$(( $$(date +%s) - start )) s"

$(VENV)/.dev: $(VENV)/.run
	@echo "setting up the development tools ..."; start=$$(date +%s); \
	$(PIP) --editable '.[dev]' && touch $@ && echo "development tools ready in $$(( $$(date +%s) - start )) s"

demo: $(VENV)/.run  ## audit Python's standard library with a team of 24 agents, and kill one on the way
	$(BIN)/flowray run clusters/audit.yaml $(INPUT) -o $(OUT) --set job.options.tests=false --fresh --kill-one

test: $(VENV)/.dev  ## all tests but the longest: those that start Ray one after the other, beside them all others
	$(BIN)/pytest -n 2 --no-loadscope-reorder --durations=30

test-fast: $(VENV)/.dev  ## the tests that need no Ray
	$(BIN)/pytest -m "not ray and not cluster"

test-ray: $(VENV)/.dev  ## the tests on real Ray processes
	$(BIN)/pytest -m "ray or cluster"

# Of `make chaos`: where the figures of one seed go, the tests that have the machine to themselves, and those that wait
# more than they work, beside one another. What fails does not keep the rest, or the table, from being there.
CHAOS_FILES = FLOWRAY_CHAOS_SEED=$(1) FLOWRAY_CHAOS_JSON=out/chaos/seed-$(1).json \
	FLOWRAY_SERVE_JSON=out/chaos/serve-$(1).json FLOWRAY_ZOMBIES_JSON=out/chaos/zombies-$(1).json \
	FLOWRAY_STATEFUL_JSON=out/chaos/stateful-$(1).json FLOWRAY_WEATHER_JSON=out/chaos/weather-$(1).json \
	FLOWRAY_CALLS_JSON=out/chaos/calls-$(1).json
CHAOS_FAULTS = $(foreach name,chaos accounts serve_kills,tests/cluster/test_$(name).py)
CHAOS_ALSO = tests/cluster/test_overload.py
CHAOS_WAITING = $(foreach name,cluster/test_weather cluster/test_lost_calls cluster/test_zombies cluster/test_moving \
	cluster/test_drained cluster/test_long_outage cluster/test_full_disk \
	mesh/test_namespaces mesh/test_faults, \
	tests/$(name).py) tests/runtime/test_head_on_ray.py::test_a_head_on_a_redis_survives

chaos: $(VENV)/.dev  ## kill agents, coordinators, nodes and the head of a real cluster, in full counts (needs root)
	rm -rf out/chaos && mkdir -p out/chaos
	status=0; \
	$(call CHAOS_FILES,1) $(BIN)/pytest --chaos-full -s $(CHAOS_FAULTS) $(CHAOS_ALSO) || status=1; \
	$(call CHAOS_FILES,1) $(BIN)/pytest --chaos-full -n 3 --dist loadfile $(CHAOS_WAITING) || status=1; \
	$(BIN)/python tests/cluster/chaos_summary.py out/chaos || status=1; exit $$status

chaos-long: $(VENV)/.dev  ## the same faults with ROUNDS seeds: hours, for a night (needs root)
	rm -rf out/chaos && mkdir -p out/chaos
	status=0; for seed in $$(seq 1 $(ROUNDS)); do \
	$(call CHAOS_FILES,$$seed) $(BIN)/pytest --chaos-full -s $(CHAOS_FAULTS) \
	$(foreach name,weather lost_calls zombies,tests/cluster/test_$(name).py) || status=1; done; \
	$(BIN)/python tests/cluster/chaos_summary.py out/chaos || status=1; exit $$status

check: $(VENV)/.dev  ## format, lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -q tests/test_layers.py

format: $(VENV)/.dev  ## put the code into shape
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

crash-points: $(VENV)/.dev  ## kill and fail the real journal at each of its system calls, then flip its bits (half an hour on two cores)
	pids=""; seed=0; for fault in KILL EIO ENOSPC delay; do seed=$$((seed + 1)); \
	$(BIN)/python tests/store/crash_points.py --faults $$fault --flips 500 --seed $$seed & pids="$$pids $$!"; done; \
	status=0; for pid in $$pids; do wait $$pid || status=1; done; exit $$status

router: $(VENV)/.dev  ## train the routing network that is shipped anew, and its int8 form (four minutes on two idle cores)
	$(BIN)/flowray router train --device cpu $(ROUTER_DATA) -o out/router
	$(BIN)/flowray router quantize --model out/router $(ROUTER_DATA) -o models/router/v1

sim: $(VENV)/.dev  ## simulate SEEDS random worlds, then hunt the planted mutants
	$(BIN)/python -m flowray.testing --seeds $(SEEDS) --save out/sim.json
	$(BIN)/python tests/simulation/mutants.py --summary out/sim.json

hours: $(VENV)/.dev  ## simulate HOURS virtual hours, going on where an earlier run was ended, and write tests/simulation/HOURS.md
	mkdir -p out && { test -f out/hours.jsonl || cp tests/simulation/hours.jsonl out/; }
	$(BIN)/python -m flowray.testing --hours $(HOURS) --ledger out/hours.jsonl
	$(BIN)/python tests/simulation/hours.py out/hours.jsonl

mutants: $(VENV)/.dev  ## hunt the bugs planted in the core and write tests/simulation/KILLS.md
	$(BIN)/python tests/simulation/mutants.py

journals: $(VENV)/.dev  ## before a release: keep journals that this version writes, for all later ones to recover
	$(BIN)/python tests/store/releases.py

bench: $(VENV)/.dev  ## measure flowray beside plain Ray, gRPC, xoscar and AutoGen
	$(BIN)/python -m bench core
	$(BIN)/python -m bench journal
	$(BIN)/python -m bench recovery
	$(BIN)/python -m bench messaging
	$(BIN)/python -m bench tasks
	$(BIN)/python -m bench scale
	$(BIN)/python -m bench payloads
	$(BIN)/python -m bench routing
	$(BIN)/python -m bench shift
	$(BIN)/python -m bench rollout

docs: $(VENV)/.dev  ## run every command and example of README, ARCHITECTURE and CHANGELOG; remake the editor schema
	$(BIN)/flowray config schema > clusters/flowray.schema.json
	$(BIN)/pytest -q tests/test_documents.py

clean:  ## remove what was made here (not the environment)
	rm -rf out build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis bench/results

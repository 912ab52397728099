# Needs make and a Python from 3.11 on; everything else is installed into .venv.
PYTHON  ?= python3
# Switches: 1 is yes. Nothing that deletes, or takes long, comes in from the environment.
override FRESH := $(if $(filter command,$(origin FRESH)),$(FRESH))
override RETRAIN := $(if $(filter command,$(origin RETRAIN)),$(RETRAIN))
KNOWN := PYTHON PROFILE WORKFLOW CORES METHODS SEEDS GRID FRESH RUN RETRAIN PYTEST
$(foreach name,$(.VARIABLES),$(if $(filter command,$(origin $(name))),$(if $(filter $(KNOWN),\
	$(name)),,$(error make takes no $(name); possible are $(KNOWN)))))
$(foreach name,FRESH RETRAIN,$(if $(filter-out x x0 x1,x$(subst $() ,_,$($(name)))),\
	$(error $(name) is $($(name)); possible is 1, 0 or nothing)))
PROFILE ?= digits
# Where the batch runs: a folder of workflow/profiles, local or slurm.
WORKFLOW ?= local
BIN     := .venv/bin
PIP     := $(BIN)/python -m pip install --quiet --disable-pip-version-check
BATCH   := $(BIN)/python workflow/run.py
# Containers may have a user without a home, where Snakemake, Matplotlib and IPython keep things.
export HOME := $(shell test -w "$$HOME" && echo "$$HOME" || mktemp -d)
WRITABLE = test -w . || { echo "make: $(CURDIR) can't be written, and Snakemake keeps its \
	record there; copy the checkout" >&2; exit 1; }
SNAKEMAKE = $(WRITABLE); env -u SNAKEMAKE_PROFILE -u SNAKEMAKE_WORKFLOW_PROFILE \
	$(BIN)/snakemake --snakefile workflow/Snakefile \
	--workflow-profile workflow/profiles/$(WORKFLOW) $(if $(CORES),--cores $(CORES))
# Two workers: with more than a thread each they would crowd two cores.
PYTEST_ALL := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

# Choices that make hands on.
METHODS_OPTION = $(if $(METHODS),--methods $(METHODS))
SEEDS_OPTION   = $(if $(SEEDS),--seeds $(SEEDS))
GRID_OPTION    = $(if $(GRID),--grid $(GRID))
FRESH_OPTION   = $(if $(filter 1,$(FRESH)),--fresh)
CHOSEN  = $(PROFILE) $(GRID_OPTION) $(METHODS_OPTION) $(SEEDS_OPTION)
CONFIG  = --config profile=$(PROFILE) $(if $(METHODS),methods=$(METHODS)) $(SEEDS_CONFIG)
SEEDS_CONFIG = $(if $(SEEDS),seeds=$(SEEDS))

.PHONY: help env lock reproduce studies grid plan speed publish verify book \
	test slow test-all nightly notebook chapters clean
.DEFAULT_GOAL := reproduce

help: ## what there is to make, with the variables that each takes
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | \
		while IFS='|' read -r name what; do printf '%-10s %s\n' "$$name" "$$what"; done

# Made once, and again when the lock or the package's metadata change.
env: ## a virtual environment in .venv from the lock
	@cat requirements.lock pyproject.toml | cmp -s - .venv/made-from || { \
		$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and \
			'mixshare needs Python 3.11 or newer; name one with make PYTHON=python3.12')" && \
		rm -rf .venv && $(PYTHON) -m venv .venv && \
		echo "installing the environment: a few minutes, once" && \
		$(PIP) -r requirements.lock && \
		$(PIP) --no-deps --no-build-isolation --config-settings editable_mode=compat --editable . && \
		cat requirements.lock pyproject.toml > .venv/made-from; }

# Trains each run in an executed chapter, and ends with the table.
reproduce: env ## the methods for three seeds (PROFILE, METHODS, SEEDS, WORKFLOW, CORES, FRESH=1)
	@$(BATCH) prepare $(PROFILE) $(METHODS_OPTION) $(SEEDS_OPTION) $(FRESH_OPTION)
	@$(SNAKEMAKE) $(CONFIG)
	@$(BATCH) table $(PROFILE)

studies: env ## the same and the ablations (PROFILE, SEEDS, WORKFLOW, CORES, FRESH=1)
	@$(BATCH) prepare $(PROFILE) --batch studies $(SEEDS_OPTION) $(FRESH_OPTION)
	@$(SNAKEMAKE) --config profile=$(PROFILE) batch=studies $(SEEDS_CONFIG)

grid: env ## a study that a file declares (GRID=workflow/grids/width.yml, WORKFLOW, CORES)
	@$(BATCH) prepare --grid $(GRID)
	@$(SNAKEMAKE) --config grid=$(GRID)

plan: env ## what a batch would run, and for how long (GRID, or PROFILE, METHODS, SEEDS)
	@$(BATCH) plan $(CHOSEN)

speed: env ## how fast a step is on this machine, measured anew: chapter 06, alone (PROFILE)
	@$(BATCH) prepare $(PROFILE) --batch speed --fresh
	@$(SNAKEMAKE) --config profile=$(PROFILE) batch=speed

publish: env ## check results and copy them to outputs/published (GRID, or PROFILE, METHODS, SEEDS)
	@$(BATCH) publish $(CHOSEN)

verify: env ## check a run's files, figures, weights and chapter (RUN=a run's folder, RETRAIN=1)
	@$(BATCH) verify "$(RUN)" $(if $(filter 1,$(RETRAIN)),--retrain)

book: env ## executed chapters and the pages as a site, outputs/book/index.html (PROFILE: it alone)
	@$(BIN)/python docs/book.py $(if $(filter command,$(origin PROFILE)),$(PROFILE))

test: env ## the tests but the slow ones, and chapters against their committed outputs (PYTEST)
	@$(PYTEST_ALL) --nbval -m "not slow" $(PYTEST)

slow: env ## the slow tests: processes killed, a Slurm cluster, chapters in JupyterLab (PYTEST)
	@$(PYTEST_ALL) -m slow $(PYTEST)

test-all: env ## both (PYTEST)
	@$(PYTEST_ALL) --nbval $(PYTEST)

nightly: env ## the tests for hours: more kills, runs, damaged bytes and random input (PYTEST)
	@$(PYTEST_ALL) --hypothesis-profile nightly -o faulthandler_timeout=0 \
		$(PYTEST) tests

notebook: env ## the chapters in JupyterLab
	@$(BIN)/jupyter lab notebooks $(if $(filter 0,$(shell id -u)),--allow-root)

chapters: env ## execute the chapters in their smoke form and put the outputs into them
	@$(BATCH) refresh

lock: ## resolve pyproject.toml into requirements.lock again, for all systems
	@$(PYTHON) -m pip install --quiet uv
	@$(PYTHON) -m uv pip compile pyproject.toml --extra book --extra notebooks --extra test \
		--universal --fork-strategy fewest --no-header --no-annotate --quiet \
		--output-file requirements.lock

clean: ## the environment and what tools leave behind; results stay
	@rm -rf .venv .snakemake .pytest_cache .hypothesis *.egg-info build
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

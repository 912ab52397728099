# Needs make and a Python from 3.11 on; everything else is installed into .venv.
PYTHON  ?= python3
PROFILE ?= digits
# Where the batch runs: a folder of workflow/profiles, local or slurm.
WORKFLOW ?= local
BIN     := .venv/bin
SNAKEMAKE = $(BIN)/snakemake --snakefile workflow/Snakefile --workflow-profile workflow/profiles/$(WORKFLOW) $(if $(CORES),--cores $(CORES))
# Several runs on this machine's own GPU; not on a cluster's login node.
TOGETHER = $(if $(filter local,$(WORKFLOW)),$(BIN)/python -m mixshare together,:)

.PHONY: help env lock reproduce studies grid plan speed publish verify book test nightly notebook chapters clean
.DEFAULT_GOAL := reproduce

help: ## what there is to make, with the variables that each takes
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r name what; do printf '%-10s %s\n' "$$name" "$$what"; done

env: ## a virtual environment in .venv from the lock, made once, made again when the lock or the package's metadata change
	@cat requirements.lock pyproject.toml | cmp -s - .venv/made-from || { \
		$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'mixshare needs Python 3.11 or newer; name one with make PYTHON=python3.12')" && \
		rm -rf .venv && $(PYTHON) -m venv .venv && \
		echo "installing the environment: a few minutes, once" && \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock && \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --config-settings editable_mode=compat --editable . && \
		cat requirements.lock pyproject.toml > .venv/made-from; }

reproduce: env ## train the methods for three seeds, each as an executed chapter, and end with the table (PROFILE, METHODS, SEEDS, WORKFLOW, CORES, FRESH=1)
	@$(BIN)/python -m mixshare prepare $(PROFILE) $(if $(METHODS),--methods $(METHODS)) $(if $(SEEDS),--seeds $(SEEDS)) $(if $(FRESH),--fresh)
	@$(TOGETHER) $(PROFILE) $(if $(METHODS),--methods $(METHODS)) $(if $(SEEDS),--seeds $(SEEDS))
	@$(SNAKEMAKE) --config profile=$(PROFILE) $(if $(METHODS),methods=$(METHODS)) $(if $(SEEDS),seeds=$(SEEDS))
	@$(BIN)/python -m mixshare table $(PROFILE)

studies: env ## the same, and the ablations with the chapters that read them (PROFILE, SEEDS, WORKFLOW, CORES, FRESH=1)
	@$(BIN)/python -m mixshare prepare $(PROFILE) --batch studies $(if $(SEEDS),--seeds $(SEEDS)) $(if $(FRESH),--fresh)
	@$(TOGETHER) $(PROFILE) --batch studies $(if $(SEEDS),--seeds $(SEEDS))
	@$(SNAKEMAKE) --config profile=$(PROFILE) batch=studies $(if $(SEEDS),seeds=$(SEEDS))

grid: env ## a study that a file declares: each of its runs as an executed chapter, then chapter 05 on all (GRID=workflow/grids/width.yml, WORKFLOW, CORES)
	@$(BIN)/python -m mixshare prepare --grid $(GRID)
	@$(TOGETHER) --grid $(GRID)
	@$(SNAKEMAKE) --config grid=$(GRID)

plan: env ## what a batch would run, what of it is done, and about how many hours the rest takes (GRID, or PROFILE, METHODS, SEEDS)
	@$(BIN)/python -m mixshare plan $(PROFILE) $(if $(GRID),--grid $(GRID)) $(if $(METHODS),--methods $(METHODS)) $(if $(SEEDS),--seeds $(SEEDS))

speed: env ## how fast a step is on this machine, measured anew: chapter 06, alone (PROFILE)
	@$(BIN)/python -m mixshare prepare $(PROFILE) --batch speed --fresh
	@$(SNAKEMAKE) --config profile=$(PROFILE) batch=speed

publish: env ## check a profile's results, or a grid's, copy them to outputs/published, and bring the README's table up to date (PROFILE, METHODS, SEEDS, or GRID)
	@$(BIN)/python -m mixshare publish $(PROFILE) $(if $(GRID),--grid $(GRID)) $(if $(METHODS),--methods $(METHODS)) $(if $(SEEDS),--seeds $(SEEDS))

verify: env ## check a run: its files, its figures from its answers and weights, its chapter (RUN=a run's folder, RETRAIN=1)
	@$(BIN)/python -m mixshare verify "$(RUN)" $(if $(RETRAIN),--retrain)

book: env ## a profile's executed chapters as a site to read, outputs/<profile>/book/index.html (PROFILE)
	@$(BIN)/python -m mixshare book $(PROFILE)

test: env ## the tests, and the chapters in their smoke form against their committed outputs
	@$(BIN)/python -m pytest -n 2 --dist loadfile --nbval $(PYTEST)

nightly: env ## the tests for longer: more kills, runs, damaged bytes and random input; some hours, and their figures at the end
	@$(BIN)/python -m pytest -n 2 --dist loadfile --hypothesis-profile nightly $(PYTEST) tests

notebook: env ## the chapters in JupyterLab
	@$(BIN)/jupyter lab notebooks $(if $(filter 0,$(shell id -u)),--allow-root)

chapters: env ## execute the chapters in their smoke form and put the outputs into them
	@$(BIN)/python -m mixshare refresh

lock: ## resolve pyproject.toml into requirements.lock again, for all systems
	@$(PYTHON) -m pip install --quiet uv
	@$(PYTHON) -m uv pip compile pyproject.toml --extra book --extra notebooks --extra test --universal --fork-strategy fewest --no-header --no-annotate --quiet --output-file requirements.lock

clean: ## the environment and what tools leave behind; results stay
	@rm -rf .venv .snakemake .pytest_cache .hypothesis *.egg-info build
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.PHONY: help setup lock demo test install-check gpu-check lint format doctor clean

ENV := . tools/env.sh &&
# Interrupt a stage that hangs, as Ctrl-C does, so that tests can still end the processes they have started.
LIMIT := timeout --foreground --signal=INT --kill-after=30

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' Makefile

setup: ## set up .venv; ACCELERATOR=cuda|rocm|cpu, TORCH and MPI select what is installed (tools/setup.sh)
	@tools/setup.sh

# Without torch, which tools/setup.sh installs by itself; the requirements of torch are in requirements.in.
lock: ## update the versions that make setup installs; needs uv on PATH
	uv pip compile --quiet --universal --python-version 3.10 --generate-hashes --upgrade --all-extras \
	  --overrides <(echo 'torch; python_version < "3"') --custom-compile-command "make lock" \
	  --output-file requirements.lock pyproject.toml requirements.in

demo: setup ## codistil two groups for a few minutes and write a report; ARGS=... adds options of train
	@$(ENV) tools/demo.sh $(ARGS)

# The processes of the tests share the cores, and most are ranks; those that wait for others leave room for a third worker.
test: export OMP_NUM_THREADS := 1
test: lint ## lint, then the suite on 1, 2 and 4 ranks
	$(ENV) $(LIMIT) 1800 python -m pytest -n 3 --dist loadgroup --no-loadscope-reorder
	$(ENV) $(LIMIT) 900 mpirun -np 2 python -m pytest
	$(ENV) $(LIMIT) 900 mpirun -np 4 python -m pytest

install-check: setup ## build the wheel, install it beside torch alone, and use the loss
	tools/check_install.sh

gpu-check: setup ## pack build/gpu-check, which a GPU's machine without network can run; see docs/gpu_check.md
	$(ENV) PYTHONPATH=tools python -m gpu_check pack $(ARGS)

lint: setup ## check style and types
	$(ENV) ruff check . && ruff format --check . && mypy

format: setup ## fix style
	$(ENV) ruff check --fix . && ruff format .

doctor: setup ## check this machine; each failed check names its remedy
	@$(ENV) python -m hpcdistill doctor

clean: ## remove all generated files but runs/ and the cache of compiled wheels
	rm -rf .venv build dist *.egg-info kernels/*.so .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Everything is installed into .venv, once; `make help` says what there is.
PYTHON  ?= python3
PORT    ?= 8888
WORKERS ?= 2
VENV    := .venv
RUN     := $(VENV)/bin/python
LESSONS  = $(wildcard notebooks/[0-9]*.ipynb)

# A stamp is older than what it depends on: install again. Both lie in .venv, so that deleting it is a fresh start.
READY       := $(VENV)/.ready
READY_TESTS := $(VENV)/.ready-tests

.PHONY: help lab test test-long notebooks bench lint
.DEFAULT_GOAL := help

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

lab: $(READY)  ## JupyterLab with the course; PORT=8890 for another port
	@echo "JupyterLab starts on port $(PORT), or on the next free one; Ctrl-C twice stops it."
	@$(RUN) -m jupyterlab --ServerApp.ip=127.0.0.1 --ServerApp.port=$(PORT) \
	    --LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb \
	    --ServerApp.jpserver_extensions=jupyterlab_jupytext=False $(ALLOW_ROOT)

test: $(READY_TESTS)  ## style, tests and every lesson once; ARGS="-k mask" for some
	@$(CHECK_STYLE)
	@CI=1 $(PYTEST) $(ARGS)

test-long: $(READY_TESTS)  ## the same with the deep checks
	@$(CHECK_STYLE)
	@$(PYTEST) -m "long or not long" --hypothesis-profile=long $(ARGS)

notebooks: $(READY_TESTS)  ## run notebooks/py/*.py into notebooks/*.ipynb; LESSON=03 for one
	@$(RUN) notebooks/build.py $(LESSON)

bench: $(READY_TESTS)  ## the speed measurements
	@for script in $(wildcard bench/run.py bench/sweep.py bench/latency.py); do echo "$$script"; $(RUN) $$script || exit 1; done

lint: $(READY_TESTS)  ## mend the style
	@$(RUN) -m ruff check --fix . && $(RUN) -m ruff format .

# Jupyter refuses to run as root unless told; containers often are root. Lab saves a lesson's .ipynb only: with
# jupytext in Lab a reader's own answers would flow back into notebooks/py, the source.
ALLOW_ROOT   = $(if $(filter 0,$(shell id -u)),--allow-root)
CHECK_STYLE := $(RUN) -m ruff check . && $(RUN) -m ruff format --check .
PYTEST       = $(RUN) -m pytest -n $(WORKERS) --dist loadfile \
    --nbval-lax --nbval-current-env --nbval-cell-timeout=120 tests $(LESSONS)

# $(1) what, $(2) the extras, $(3) the stamps
define install
	@echo "installing $(1) into $(VENV) (about 3 minutes, once) ..."; start=$$(date +%s); \
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".$(2)" && \
	mkdir -p $(SETTINGS) && echo '$(NO_NEWS)' > $(SETTINGS)/overrides.json && \
	touch $(3) && echo "done in $$(($$(date +%s) - start)) s"
endef

SETTINGS := $(VENV)/share/jupyter/lab/settings
NO_NEWS  := {"@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": false}}
EXTRAS   := [test,bench,sweep]

$(READY): pyproject.toml constraints.txt | $(RUN)
	$(call install,the package and JupyterLab,,$(READY))

$(READY_TESTS): pyproject.toml constraints.txt | $(RUN)
	$(call install,package and test tools,$(EXTRAS),$(READY) $(READY_TESTS))

$(RUN):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo "pai_lab needs Python 3.11 or newer; '$(PYTHON)' is: $$($(PYTHON) --version 2>&1)."; \
	    echo "Name another one, for example: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo "This Python cannot make virtual environments. On Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@$(PYTHON) -m venv $(VENV)

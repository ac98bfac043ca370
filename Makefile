# `make help` lists what there is.
PYTHON ?= python3
VENV = .venv
BIN = $(VENV)/bin
READY = $(VENV)/ready
INSTALLER = .state/installer
NEW_ENOUGH = $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
  || { echo "Python 3.11 or newer is needed; name one with: make PYTHON=python3.12"; exit 1; }
SOURCES = config dags dev docs plugins tests

.DEFAULT_GOAL := help
.PHONY: help demo test bench try-celery laws lint schema partition lock clean

help:  ## List the commands
	@sed -n 's/^\([a-z-]*\):.*  ## /\1  /p' $(MAKEFILE_LIST) | awk '{c=$$1; $$1=""; printf "make %-11s%s\n", c, $$0}'

$(READY): requirements.txt
	@$(NEW_ENOUGH)
	@echo "Installing requirements.txt into $(VENV) ..."
	@$(PYTHON) -m venv --clear $(VENV)
	@# Older pips cannot check the hashes of requirements with extras.
	@$(BIN)/pip install --quiet --disable-pip-version-check 'pip>=26'
	@$(BIN)/pip install --quiet -r requirements.txt
	@touch $@

demo: $(READY)  ## Run the three jobs in a real Airflow on sample traffic (KEEP=0: stop at the end; DATA=folder: own traffic)
	@KEEP='$(KEEP)' DATA='$(DATA)' $(BIN)/python dev/demo.py

test: $(READY)  ## Run the tests (POSTGRES=/usr/lib/postgresql/15/bin: on that server instead of the embedded one)
	@POSTGRES='$(POSTGRES)' $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

bench: $(READY)  ## Measure the jobs beside what people use instead, some 8 minutes (SCALE=medium: 30; ONLY=name,name: some)
	@PYTHONPATH=dags:dev:tests SCALE='$(SCALE)' ONLY='$(ONLY)' $(BIN)/python -m benchmarks

try-celery: $(READY)  ## Run the jobs under Celery and git while workers and Redis are killed; needs redis-server (TASKS=0: do not time)
	@PYTHONPATH=dags:dev TASKS='$(TASKS)' $(BIN)/python tests/try_executors.py

laws: $(READY)  ## Break each law in one line of a copy, and show the test that fails
	@$(BIN)/python tests/laws.py

lint: $(READY)  ## Check the Python and SQL files, changing nothing
	@$(BIN)/ruff check $(SOURCES)
	@$(BIN)/ruff format --check $(SOURCES)
	@$(BIN)/mypy
	@$(BIN)/sqlfluff lint include dev plugins

# All that the installer and the partitioner need: psycopg, of the version and with the hashes in requirements.txt.
$(INSTALLER)/ready: requirements.txt
	@$(NEW_ENOUGH)
	@$(PYTHON) -m venv --clear $(INSTALLER)
	@awk '/^[a-z]/ { wanted = /^(psycopg|psycopg-binary|typing-extensions|tzdata)==/ } wanted' requirements.txt \
	  | $(INSTALLER)/bin/pip install --quiet --disable-pip-version-check -r /dev/stdin
	@touch $@

schema: $(INSTALLER)/ready  ## Install our tables, functions, indexes and grants: make schema DSN=postgresql://owner@host/database
	@$(INSTALLER)/bin/python dags/web_analytics/schema.py '$(value DSN)'

partition: $(INSTALLER)/ready  ## Make a big analytics_event a partitioned table, online: make partition DSN=... (EVERY=day, week or month)
	@$(INSTALLER)/bin/python dags/web_analytics/partition.py '$(value DSN)' --every $(or $(EVERY),week)

lock: $(READY)  ## Pin the versions of requirements.in in requirements.txt (needs uv), as they were at the end of DATE
	@uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
	  --custom-compile-command 'make lock DATE=$(DATE)' --exclude-newer $(DATE) requirements.in -o requirements.txt

clean:  ## Remove what the other commands made
	@pid=.state/postgres/data/postmaster.pid; [ ! -e $$pid ] || { \
	  pid=$$(head -n 1 $$pid); case "$$(ps -o command= -p $$pid)" in *postgres*) kill -INT $$pid; esac; }
	@[ ! -e .state/postgres ] || rm -rf "$$(readlink -f .state/postgres)"  # for root, a link to where nobody may go
	@rm -rf $(VENV) .state .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

#!/usr/bin/env bash
# Lint, types and tests, in two processes. Arguments go to pytest: ./run_tests.sh tests/test_settings.py
set -euo pipefail
cd "$(dirname "$0")"
. utils/environment.sh
ensure_environment
. .venv/bin/activate

ruff check .
ruff format --check .
mypy
python -m utils.model.embedded
# in the order of the files: by their number of tests, as is the default, the longest ones would come last, one beside none
python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder "$@"

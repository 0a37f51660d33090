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
python -m pytest --numprocesses 2 --dist loadfile "$@"

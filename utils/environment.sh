# Sourced by quickstart.sh and run_tests.sh: makes .venv with the pinned requirements and the suite itself (editable), where it is missing or old.

environment_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3 python3.14 python3.13 python3.12 python3.11; do
        if [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 \
            && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
            echo "$candidate"
            return
        fi
    done
    echo "error: Python 3.11 or later is needed (the pinned transformers asks for it); install it, or name it: PYTHON=/path/to/python3.11 $0" >&2
    return 2
}

ensure_environment() {
    local stamp=.venv/requirements.installed
    if [ -x .venv/bin/python ] && cat requirements.txt pyproject.toml | cmp -s - "$stamp"; then
        return
    fi
    local python
    python=$(environment_python) || return 2
    [ -x .venv/bin/python ] || "$python" -m venv .venv
    echo "installing requirements.txt into .venv (a few minutes, once)" >&2
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
    cat requirements.txt pyproject.toml >"$stamp"
}

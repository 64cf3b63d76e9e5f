#!/usr/bin/env bash
# Set-up, then every check: ruff, mypy, API pages, pytest, and the notebooks from fresh kernels (nbval).
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")" || exit 2
. workflow/setup.sh
[ $# -eq 0 ] || fail "run_tests.sh takes no options; for a part of it call .venv/bin/python -m pytest directly."

setup_python
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OMP_WAIT_POLICY=passive TOKENIZERS_PARALLELISM=false
export SOURCE_DATE_EPOCH=0 FORCE_SOURCE_DATE=1 MPLBACKEND=Agg
export TSAE_SMOKE=1 # notebooks on small inputs, whatever runs have left

failed=""
check() {
    local name=$1 started=$SECONDS
    shift
    say "== $name: $*"
    if "$@" </dev/null; then
        say "== $name: passed in $((SECONDS - started)) s"
    else
        say "== $name: FAILED after $((SECONDS - started)) s"
        failed="$failed $name"
    fi
}

check lint .venv/bin/ruff check .
check format .venv/bin/ruff format --check .
check types .venv/bin/mypy
check docs .venv/bin/python workflow/api.py
check pytest .venv/bin/python -m pytest tests -q -n 2
check notebooks .venv/bin/python -m pytest --nbval-lax --nbval-cell-timeout=600 -q -n 2 --dist loadfile notebooks/*.ipynb

[ -z "$failed" ] || fail "FAILED:$failed (after $SECONDS s)"
say "All checks passed in $SECONDS s."

#!/usr/bin/env bash
# The quickstart notebook in an empty environment: bash benchmarks/quickstart.sh DIRECTORY [SOURCE]
# DIRECTORY gets a new environment with a notebook's kernel, torch and nothing else, as Colab or
# Binder give one; the notebook's first cell installs SOURCE (default: this repository's last
# commit, by git). Prints how long each part took; status 1 when a cell fails.
set -euo pipefail
[ $# -ge 1 ] || { echo "usage: bash benchmarks/quickstart.sh DIRECTORY [SOURCE]" >&2; exit 2; }
[ ! -e "$1" ] || { echo "$1 exists already; give a new directory." >&2; exit 2; }
root=$(cd "$(dirname "$0")/.." && pwd)
source=${2:-git+file://$root}
python3 -m venv "$1"
at=$(cd "$1" && pwd)
cp "$root/notebooks/extra/quickstart.ipynb" "$at/"
cd "$at" # not the repository: what runs must be what pip installed
unset PYTHONPATH
started=$SECONDS
bin/python -m pip install --quiet --disable-pip-version-check --no-input torch==2.13.0 ipykernel nbconvert
echo "environment: $((SECONDS - started)) s"
started=$SECONDS
export TSAE_SOURCE=$source PATH=$at/bin:$PATH HF_HUB_OFFLINE=1
bin/jupyter nbconvert --to notebook --execute --ExecutePreprocessor.timeout=3600 \
    --output executed.ipynb quickstart.ipynb
echo "notebook, installation of $source included: $((SECONDS - started)) s"
bin/python - executed.ipynb <<'PY'
import json, sys
import tsae
print(f"tsae {tsae.__version__} from {tsae.__file__}")
for cell in json.load(open(sys.argv[1]))["cells"]:
    for out in cell.get("outputs", []):
        print("".join(out.get("text", out.get("data", {}).get("text/plain", "")))[:400].rstrip())
PY

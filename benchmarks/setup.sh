#!/usr/bin/env bash
# Make the peers' environment: bash benchmarks/setup.sh DIRECTORY
# torch first, from pip's own index; then the pins. The three peers come without their own
# dependency pins, which ask for torchvision, nnsight and an old numpy that nothing here uses.
set -euo pipefail
[ $# -eq 1 ] || { echo "usage: bash benchmarks/setup.sh DIRECTORY" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
python3 -m venv "$1"
pip() { "$1/bin/python" -m pip install --quiet --disable-pip-version-check --no-input "${@:2}"; }
pip "$1" torch==2.13.0
pip "$1" -r "$here/requirements.txt"
pip "$1" --no-deps dictionary_learning==0.1.0 eai-sparsify==1.3.3 sae-bench==0.6.0
echo "the peers' python: $1/bin/python"

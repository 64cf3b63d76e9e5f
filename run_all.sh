#!/usr/bin/env bash
# Set-up, then everything: worlds, training, evaluation, figures, tables, PDF. Repeating it is free.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
. workflow/setup.sh

usage() {
    cat <<TEXT
usage: ./run_all.sh [--profile NAME] [--cores N] [--model PATH] [--text PATH] [--layer N]
                    [--device NAME] [--executor NAME] [--dry-run] [-- SNAKEMAKE OPTIONS]

  --profile NAME   what to run: $(profiles) (default: laptop; local with --model)
  --cores N        jobs at a time (default: 2)
  --model PATH     a Hugging Face folder or GGUF file of yours } for a profile that has a
  --text PATH      a text, JSONL or datasets folder           } 'local' world: --profile local
  --layer N        the layer whose residual stream is read    }
  --device NAME    auto (default: a GPU where torch sees one), cpu or cuda
  --executor NAME  where the jobs run: local (default), or an executor plugin of Snakemake
                   that is installed in .venv, such as slurm; then --cores is jobs at a time
  --dry-run        only say which stages would be made
  -- OPTIONS       are handed to Snakemake, such as --default-resources slurm_partition=cpu

Killed at any moment, it goes on where it stopped when called again. Results: results/NAME/.
TEXT
}

profiles() {
    local name names=""
    for name in workflow/profiles/*.yaml; do
        name=${name##*/}
        names="$names${names:+, }${name%.yaml}"
    done
    printf '%s' "$names"
}

profile=""
default=laptop
options=()
engine=()
while [ $# -gt 0 ]; do
    case $1 in
        -h | --help) usage; exit 0 ;;
        --) engine=("$@"); break ;;
        --dry-run) options+=("$1"); shift ;;
        --profile | --cores | --model | --text | --layer | --device | --executor)
            [ $# -ge 2 ] || fail "run_all.sh: option $1 needs a value; see ./run_all.sh --help."
            if [ "$1" = --profile ]; then profile=$2; else options+=("$1" "$2"); fi
            if [ "$1" = --model ]; then default=local; fi
            shift 2
            ;;
        *) fail "run_all.sh: unknown option '$1'; see ./run_all.sh --help." ;;
    esac
done
profile=${profile:-$default}
[ -f "workflow/profiles/$profile.yaml" ] ||
    fail "run_all.sh: there is no profile '$profile'; choose one of: $(profiles)."

setup_python
case " ${options[*]+"${options[*]}"} " in
    *" --dry-run "*) ;; # says what would be done, so nothing is installed for it
    *) setup_tex ;;
esac
exec .venv/bin/python -m lab.pipeline all --profile "$profile" \
    "${options[@]+"${options[@]}"}" "${engine[@]+"${engine[@]}"}"

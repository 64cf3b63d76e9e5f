# Set-up shared by run_all.sh and run_tests.sh; sourced, from the repository's root.

say() { printf '%s\n' "$*"; }
fail() { printf '%s\n' "$*" >&2; exit 2; }

find_python() {
    local candidate
    for candidate in python3 python3.11 python3.12 python3.13; do
        if command -v "$candidate" >/dev/null 2>&1 &&
            "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    fail "Python 3.11 or newer is needed: install it (or 'conda env create -f environment.yml' brings it) and run this again."
}

# What the environment was made from: the pins, the package's metadata, and where it stands.
environment_stamp() {
    .venv/bin/python - <<'PYTHON'
import hashlib, pathlib, sys
parts = [pathlib.Path(name).read_bytes() for name in ("requirements.lock", "pyproject.toml")]
parts += [sys.version.encode(), str(pathlib.Path.cwd()).encode()]
print(hashlib.sha256(b"\0".join(parts)).hexdigest())
PYTHON
}

pip_install() {
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-input --no-compile "$@" \
        </dev/null >>.venv/pip.log 2>&1 ||
        fail "Set-up stopped: pip could not install $* (its message: .venv/pip.log); check the network or pip's index and run this again, what is installed stays."
}

setup_python() {
    local started=$SECONDS stamp python
    if command -v flock >/dev/null 2>&1; then
        exec 9<workflow/setup.sh
        flock 9 # two scripts started together must not build one environment twice
    fi
    if ! .venv/bin/python -c '' 2>/dev/null; then
        python=$(find_python) || exit 2
        say "Set-up: creating .venv with $python"
        rm -rf .venv
        "$python" -m venv .venv ||
            fail "Set-up stopped: $python cannot make a virtual environment (on Debian or Ubuntu: apt-get install python3-venv)."
    fi
    stamp=$(environment_stamp)
    if [ "$(cat .venv/stamp 2>/dev/null)" != "$stamp" ]; then
        say "Set-up: installing torch 2.13.0 into .venv (pip's own index decides between CPU and CUDA builds)"
        pip_install torch==2.13.0
        say "Set-up: installing the other pinned packages of requirements.lock"
        pip_install -r requirements.lock
        pip_install --no-deps --editable .
        # On all cores, where pip would use one; a file that is no Python 3 is not ours to mind.
        .venv/bin/python -m compileall -q -j 0 .venv/lib >/dev/null 2>&1 || true
        printf '%s\n' "$stamp" >.venv/stamp
        say "Set-up: .venv is ready after $((SECONDS - started)) s"
    fi
    exec 9>&- # the lock is released; children must not inherit it
}

setup_tex() {
    local packages="latexmk texlive-latex-base texlive-latex-recommended texlive-fonts-recommended"
    if command -v latexmk >/dev/null 2>&1 && command -v pdflatex >/dev/null 2>&1; then
        return
    fi
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        say "Set-up: installing TeX with apt-get: $packages"
        # shellcheck disable=SC2086
        if { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages; } \
            </dev/null >.venv/apt.log 2>&1; then
            return
        fi
        say "Set-up: apt-get could not install TeX (see .venv/apt.log); everything but the PDF will be made."
        return
    fi
    say "Set-up: TeX is missing; everything but the PDF will be made. To have it, install: $packages (Debian, Ubuntu), MacTeX (macOS) or TeX Live."
}

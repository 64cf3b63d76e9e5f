"""Write requirements.lock and environment.yml from what is installed in this Python.

Pins are the closure of pyproject.toml's dependencies and its ``lab`` and ``dev`` extras, without the local part
of a version (``+cpu``), so that pip's own index decides which build of torch is taken.
Usage, after installing the wished versions: ``.venv/bin/python workflow/lock.py``
"""

import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
LOCK_HEAD = "# Exact pins of everything in .venv; written by workflow/lock.py.\n"
CONDA_HEAD = """\
# conda env create -f environment.yml; the pip part equals requirements.lock (workflow/lock.py).
name: tsae
channels:
  - conda-forge
  - nodefaults
dependencies:
  - python=3.11
  - pip
  - pip:
"""


def closure(requirements: list[str]) -> dict[str, str]:
    """Name → version of every installed package that ``requirements`` need here.

    Raises ``SystemExit`` with one line when one of them is not installed.
    """
    pins: dict[str, str] = {}
    todo = [Requirement(text) for text in requirements]
    seen = set()
    while todo:
        requirement = todo.pop()
        key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if key in seen:
            continue
        seen.add(key)
        try:
            found = distribution(requirement.name)
        except PackageNotFoundError:
            raise SystemExit(f"{requirement} is not installed; install it, then lock.") from None
        pins[key[0]] = Version(found.version).public
        extras = {"", *requirement.extras}
        for text in found.requires or []:
            needed = Requirement(text)
            if needed.marker is None or any(needed.marker.evaluate({"extra": e}) for e in extras):
                todo.append(needed)
    return dict(sorted(pins.items()))


def main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    pins = closure(project["dependencies"] + extras["lab"] + extras["dev"])
    lines = [f"{name}=={version}" for name, version in pins.items()]
    (ROOT / "requirements.lock").write_text(LOCK_HEAD + "\n".join(lines) + "\n", encoding="utf-8")
    pip_part = "".join(f"      - {line}\n" for line in [*lines, "--editable ."])
    (ROOT / "environment.yml").write_text(CONDA_HEAD + pip_part, encoding="utf-8")
    print(f"{len(lines)} pins written to requirements.lock and environment.yml")


if __name__ == "__main__":
    main()

"""A small repository for tests of the engine: trivial notebooks and one profile, ``tiny``."""

import json
import subprocess
import sys
from pathlib import Path

import nbformat

COMMON = "\nout_dir = ''\nprofile = ''\nthreads = 1\ndevice = ''"
RUN = "variant = ''\nact = ''\nk = 1\nd_sae = 1\noptions = {}\nsteps = 1\nlr = 0.1\nablation = ''"
PARAMETERS = {
    "01_worlds": "world = ''\nseed = 0\noptions = {}\nlayer = None\ntokens = {}",
    "03_train": f"world_dir = ''\nseed = 0\n{RUN}",
    "04_evaluate": "world_dir = ''\nsae_dirs = []",
    "05_unlearn": "world_dir = ''\nsae_dirs = []",
    "06_ablate": "world_dir = ''\ngrid = []",
    "07_figures": "stage_dirs = []",
}
CODE = {
    "01_worlds": """\
import os, time
from pathlib import Path
if Path('slow').exists():
    Path('slow').write_text('asleep')
    time.sleep(60)
Path(out_dir, 'world.txt').write_text(f'{world} {seed}')""",
    "03_train": """\
from pathlib import Path
if k > d_sae:
    raise ValueError(f'k={k}: at most d_sae={d_sae}')
Path(out_dir, 'sae.txt').write_text(Path(world_dir, 'world.txt').read_text() + variant)""",
    "07_figures": """\
from pathlib import Path
for name, text in {'figures/f.pdf': str(len(stage_dirs)), 'generated/numbers.tex': 'x'}.items():
    Path(out_dir, name).parent.mkdir(exist_ok=True)
    Path(out_dir, name).write_text(text)""",
}


def write_files(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def write_notebook(path: Path, parameters: str, *cells: str) -> None:
    """A notebook with a parameters cell and further code cells."""
    first = nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})
    book = nbformat.v4.new_notebook(cells=[first, *map(nbformat.v4.new_code_cell, cells)])
    book.metadata = {"kernelspec": {"name": "python3", "display_name": "", "language": "python"}}
    write_files(path.parent, {path.name: nbformat.writes(book)})


def make_root(root: Path, profile: dict) -> Path:
    """A repository with tiny notebooks and one profile, ``tiny``; returns the profile's path."""
    for name, parameters in PARAMETERS.items():
        write_notebook(root / f"notebooks/{name}.ipynb", parameters + COMMON, CODE.get(name, "1"))
    return write_profile(root, profile)


def write_profile(root: Path, profile: dict) -> Path:
    write_files(root, {"workflow/profiles/tiny.yaml": json.dumps(profile)})  # JSON is YAML
    return root / "workflow/profiles/tiny.yaml"


def world(**given) -> dict:
    base = {"world": "microworld", "tokens": {"train": 8, "test": 8}, "sae": {"k": 2, "d_sae": 4}}
    return {**base, "train": {"steps": 3, "lr": 0.1}, **given}


def finished(directory: Path, seconds: float = 1.0) -> Path:
    """Give ``directory`` the manifest of a finished stage."""
    directory.mkdir(parents=True, exist_ok=True)
    record = {file.name: {"bytes": file.stat().st_size} for file in directory.iterdir()}
    manifest = {"outputs": record, "wall_seconds": seconds, "fingerprint": "x"}
    write_files(directory, {"manifest.json": json.dumps(manifest)})
    return directory


def run_all(root: Path, *options: str, **given) -> subprocess.Popen:
    command = [sys.executable, "-m", "lab.pipeline", "all", "--profile", "tiny", "--root", root]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*command, *options], cwd=root, **pipes, **given)

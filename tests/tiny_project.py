"""A small repository for tests of the engine: trivial notebooks and one profile, ``tiny``."""

import json
from pathlib import Path

import nbformat

COMMON = "\nout_dir = ''\nprofile = ''\nthreads = 1"
PARAMETERS = {
    "01_worlds": "world = ''\nseed = 0\noptions = {}\nlayer = None\ntokens = {}",
    "03_train": "world_dir = ''\nvariant = ''\nact = ''\nk = 1\nd_sae = 1\noptions = {}\n"
    "steps = 1\nlr = 0.1\nseed = 0\nablation = ''",
    "04_evaluate": "world_dir = ''\nsae_dirs = []",
    "05_unlearn": "world_dir = ''\nsae_dirs = []",
    "06_ablate": "world_dir = ''\ngrid = []",
    "07_figures": "stage_dirs = []",
}
WORLDS_CODE = """\
import os, time
from pathlib import Path
if Path('slow').exists():
    Path('slow').write_text('asleep')
    time.sleep(60)
Path(out_dir, 'world.txt').write_text(f'{world} {seed}')"""
TRAIN_CODE = """\
from pathlib import Path
if k > d_sae:
    raise ValueError(f'k={k}: at most d_sae={d_sae}')
Path(out_dir, 'sae.txt').write_text(Path(world_dir, 'world.txt').read_text() + variant)"""
FIGURES_CODE = """\
from pathlib import Path
(Path(out_dir) / 'figures').mkdir(exist_ok=True)
(Path(out_dir) / 'generated').mkdir(exist_ok=True)
(Path(out_dir) / 'figures' / 'f.pdf').write_text(str(len(stage_dirs)))
(Path(out_dir) / 'generated' / 'numbers.tex').write_text('x')"""


def write_notebook(path: Path, parameters: str, *cells: str) -> None:
    """A notebook with a parameters cell and further code cells."""
    first = nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})
    book = nbformat.v4.new_notebook(
        cells=[first, *map(nbformat.v4.new_code_cell, cells)],
        metadata={"kernelspec": {"name": "python3", "display_name": "", "language": "python"}},
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(book, path)


def make_root(root: Path, profile: dict) -> Path:
    """A repository with tiny notebooks and one profile, ``tiny``; returns the profile's path."""
    code = {"01_worlds": WORLDS_CODE, "03_train": TRAIN_CODE, "07_figures": FIGURES_CODE}
    for name, parameters in PARAMETERS.items():
        write_notebook(root / f"notebooks/{name}.ipynb", parameters + COMMON, code.get(name, "1"))
    return write_profile(root, profile)


def write_profile(root: Path, profile: dict) -> Path:
    path = root / "workflow" / "profiles" / "tiny.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(profile))  # JSON is YAML
    return path


def world(**given) -> dict:
    base = {"world": "microworld", "tokens": {"train": 8, "test": 8}, "sae": {"k": 2, "d_sae": 4}}
    return {**base, "train": {"steps": 3, "lr": 0.1}, **given}


def finished(directory: Path, seconds: float = 1.0) -> Path:
    """Give ``directory`` the manifest of a finished stage."""
    directory.mkdir(parents=True, exist_ok=True)
    names = [file.name for file in directory.iterdir()]
    record = {name: {"bytes": (directory / name).stat().st_size} for name in names}
    manifest = {"outputs": record, "wall_seconds": seconds, "fingerprint": "x"}
    (directory / "manifest.json").write_text(json.dumps(manifest))
    return directory

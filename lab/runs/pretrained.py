"""``tsae/pretrained/`` from a finished run: its dictionaries in half precision, a card each. Beside
them, in the laboratory, the microworld's model; ``docs/browser/`` shows what its SlowFast's latents do.

python -m lab.runs.pretrained              those of CHOSEN that the run of laptop holds
python -m lab.runs.pretrained --hub DIR    the same as folders ready for a hub, with SAELens files
"""

import argparse
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import load_file, save_file

from lab import worlds
from lab.browser import write_browser
from lab.results.systems import SYSTEMS, display
from tsae import dictionaries, saes
from tsae.errors import UserError
from tsae.files import atomic, read_json, sha256
from tsae.interop.saelens import save_saelens
from tsae.store import ActivationStore

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "lab" / "worlds" / "microworld" / "trained"
"""The microworld's folder; the library knows no worlds."""
CHOSEN = {"microworld": tuple(SYSTEMS), "smollm2": ("topk", "contrastive", "slowfast")}
"""The variants of each world that are kept."""
SHOWN = {"fve": "FVE", "l0": "L0", "ap": "AP"}
"""Metrics of a card."""
LICENCES = {
    "microworld": "MIT, as this repository; the text and the model were made by it",
    "smollm2": "MIT, as this repository; of activations of SmolLM2-135M-Instruct (Apache-2.0)",
}


def trained(plan: Path) -> Iterator[tuple[str, str, Path, Path]]:
    """(world, variant, folder, folder of its world and store) of the first seeds of :data:`CHOSEN`
    that are finished."""
    for stage in read_json(plan):
        path, given = plan.parents[2] / stage["directory"] / "sae", stage["parameters"]
        for world, variants in CHOSEN.items() if path.is_dir() else ():
            named = stage["name"].startswith(f"train-{world}-") and given["variant"] in variants
            if named and given["seed"] == 0:
                yield world, given["variant"], path, plan.parents[2] / given["world_dir"]


def measured(results: pd.DataFrame, world: str, variant: str) -> list[str]:
    """Lines ``| metric | value |`` of the test split, the first seed's own codes."""
    rows = results.query("world == @world and variant == @variant and seed == 0")
    rows = rows[(rows["ablation"] == "") & (rows["reading"] == "own")]
    lines = []
    for row in rows.itertuples():
        _, part, label = row.group.partition(":")
        if (row.metric == "ap" and part) or (row.metric in ("fve", "l0") and row.group == "all"):
            of = f" of {label}" if part else ""
            lines.append(f"| {SHOWN[row.metric]}{of} | {row.value:.3f} |")
    return lines


def card(sae: saes.SAE, world: str, weights: Path, lines: list[str]) -> str:
    """The Markdown of one dictionary."""
    run = sae.meta["run"]
    tokens = run["train.steps"] * run["train.batch_tokens"]
    digest = sha256(weights)
    table = "\n".join(["| measure (test split, one seed) | value |", "| --- | --: |", *lines])
    name = f"{world}/{sae.name}"
    return f"""# {display(sae.name)} on {world}, layer {sae.meta["layer"]}

{sae.cfg.d_sae} latents on a residual stream of {sae.cfg.d_in} dimensions, {sae.cfg.k} active a token;
trained for {run["train.steps"]} steps, {tokens:,} tokens. Weights in half precision.

```python
from tsae import load

# x_BTD is the raw residual stream, in the order of the text.
z_BTF = load("{name}").encode(x_BTD)
```

{table}

Data: world `{world}` of this repository (store {sae.meta["fingerprint"][:12]}). Licence: {LICENCES[world]}.
SHA-256 of `sae.safetensors`: `{digest}`.
"""


def export(stage: Path, world: str, results: pd.DataFrame, out: Path, hub: bool = False) -> None:
    """Write one dictionary into ``out``: ``cfg.json``, ``sae.safetensors`` and ``README.md``; for a
    hub also ``saelens/``, which names what it leaves out."""
    sae = saes.load(stage)
    halved = {
        name: tensor.half() if tensor.dtype == torch.float32 else tensor
        for name, tensor in load_file(stage / "sae.safetensors").items()
    }
    with atomic(out) as temporary:
        temporary.mkdir()
        shutil.copyfile(stage / "cfg.json", temporary / "cfg.json")
        save_file(halved, temporary / "sae.safetensors")
        lines = measured(results, world, sae.name)
        text = card(sae, world, temporary / "sae.safetensors", lines)
        (temporary / "README.md").write_text(text, encoding="utf-8")
        if hub:
            save_saelens(saes.load(temporary), temporary / "saelens")


MODEL_CARD = """# The microworld and its language model

The text is written anew from its seed; the model was trained on it.

```python
from lab import worlds

world = worlds.load("{folder}")
model = world.model()  # a TransformerBridge of TransformerLens
```

Licence: MIT, as this repository. SHA-256 of `model.safetensors`: `{digest}`.
"""


def export_model(world: Path) -> None:
    """Write the microworld's folder to :data:`MODEL`, which :func:`lab.worlds.load` opens."""
    with atomic(MODEL) as temporary:
        temporary.mkdir()
        for name in ("world.json", "config.json", "model.safetensors"):
            shutil.copyfile(world / name, temporary / name)
        named = {
            "folder": MODEL.relative_to(ROOT),
            "digest": sha256(temporary / "model.safetensors"),
        }
        (temporary / "README.md").write_text(MODEL_CARD.format(**named), encoding="utf-8")


def export_page(stage: Path, sae: Path, out: Path) -> None:
    """Write what the dictionary's latents do in the world of ``stage`` as one page, slow ones first."""
    out.parent.mkdir(exist_ok=True)
    store, world = ActivationStore.open(stage / "store"), worlds.load(stage / "world")
    print(f"wrote {write_browser(saes.load(sae), store, world, out)}")


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 done, 2 for one clear line on stderr."""
    parser = argparse.ArgumentParser(prog="lab.runs.pretrained", description=__doc__)
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "laptop")
    parser.add_argument("--hub", type=Path, help="a folder for a hub instead of tsae/pretrained/")
    given = parser.parse_args(arguments)
    try:
        path = given.results / "results.parquet"
        if not path.exists():
            raise UserError(f"{path} is not there; make it with ./run_all.sh.")
        results = pd.read_parquet(path)
        for world, variant, stage, made in trained(given.results / "plan.json"):
            out = (given.hub or dictionaries.FOLDER) / world / variant
            export(stage, world, results, out, given.hub is not None)
            print(f"wrote {out}")
            if not given.hub and (world, variant) == ("microworld", "topk"):
                export_model(made / "world")
            # Of the microworld alone: what SmolLM2 reads is not ours to give away.
            if not given.hub and (world, variant) == ("microworld", "slowfast"):
                export_page(made, stage, ROOT / "docs" / "browser" / f"{world}-{variant}.html")
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

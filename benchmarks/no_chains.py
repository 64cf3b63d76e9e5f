"""How often the dependency analysis finds an edge in text that has none.

Usage: ``.venv/bin/python benchmarks/no_chains.py [--seeds 10] [--texts 4] [--out rows.csv]``
with ``--setting DIR --sae DIR`` also on the codes of a trained SAE (one world, as made by
``lab.runs.make_setting`` and a training run).

The text of ``--seeds`` microworlds, each turned ``--texts`` times into a text without chains (see
``lab.measures.succession.events``: tokens shuffled; series of two halves of the classes exchanged between
documents of one domain). True step labels stand for the codes, so nothing is trained. All that is
found is false.
"""

import argparse

import numpy as np
import pandas as pd
import scipy.sparse

from lab.measures.reading import Reading
from lab.measures.succession.edges import false_discovery
from lab.measures.succession.events import Activity
from lab.measures.succession.steps import read
from lab.runs.setting import open_setting
from lab.worlds.microworld.chains import STEP_CLASSES
from lab.worlds.microworld.config import MicroworldConfig
from lab.worlds.microworld.text import MicroworldText
from tsae import saes

LAGS = range(1, 13)


def labels(seed: int, documents: int) -> tuple[Activity, np.ndarray]:
    """Where each step begins in the first training documents, and each token's domain."""
    text = MicroworldText(MicroworldConfig(seed=seed))
    made = [text.document("train", i, i) for i in range(documents)]
    piece_N = np.repeat(np.arange(documents), [len(d.tokens) for d in made])
    step_N, kind_N = (np.concatenate([d.labels[name] for d in made]) for name in ("step", "domain"))
    at = np.flatnonzero(step_N >= 0)
    shape = (len(step_N), len(STEP_CLASSES))
    on = scipy.sparse.csc_array((np.ones(len(at), np.int32), (at, step_N[at])), shape)
    return Activity(on, piece_N).begins(), kind_N


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--texts", type=int, default=4)
    parser.add_argument("--documents", type=int, default=400)
    parser.add_argument("--setting", default=None)
    parser.add_argument("--sae", default=None)
    parser.add_argument("--out", default=None)
    given = parser.parse_args()
    rows = []
    for seed in range(given.seeds):
        activity, kind_N = labels(seed, given.documents)
        rows += false_discovery(activity, kind_N, given.texts, "labels", LAGS, seed)
    if given.sae:
        setting, sae = open_setting(given.setting), saes.load(given.sae)
        text = read(sae, Reading(setting.store), "train", "domain", 40_000)
        texts, starts = given.seeds * given.texts, text.codes.begins()
        rows += false_discovery(starts, text.label_N, texts, "latents", LAGS, 0)
    table = pd.DataFrame(rows)
    table["found"] = table["value"] * table["n"]
    table = table.groupby(["group", "metric"])[["found", "n"]].sum()
    table["share"] = table["found"] / table["n"]
    print(table.round(4).to_string())
    if given.out:
        table.to_csv(given.out)


if __name__ == "__main__":
    main()

r"""Sparse probing: can a class be read from the mean codes of a unit, with k latents or all?

Per (label, class), one against the rest of the same label, balanced in training and in test:

- units: documents, sections or tokens, by the label's time scale; vectors are means over the unit
  (a document is cut where its sequence ends);
- the k latents with the largest \|mean of positives − mean of negatives\| on the training units;
- a logistic regression on them (scikit-learn, L2, C = 1), features divided by one number, their
  RMS, so that the regularisation does not depend on the units of the codes;
- accuracy on test units, whose documents are never training documents.

Source: SAEBench ``sparse_probing`` (arXiv 2503.09532), whose probes do not rescale
(``rescale=False``) and whose unit is always a whole text. Reference: the same on the residual.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression

from lab.measures.concepts import units
from lab.measures.concepts.units import Units
from lab.measures.families import register
from lab.measures.reading import Encoder, Measured, Reading, latent_groups, row
from lab.worlds.base import World
from tsae.sequences import LabelSpec

KS = (1, 2, 5, 10, 20, 50)
PAIRED_K = 5
"""k of the document rows, and of the probes on one group of latents."""


class Task(NamedTuple):
    """One class against the rest: units (row numbers) and answers of training and test."""

    scale: str
    name: str
    train_U: np.ndarray
    train_y: np.ndarray
    test_U: np.ndarray
    test_y: np.ndarray


class Probe(NamedTuple):
    """A logistic regression on the features ``chosen``, divided by ``size``."""

    chosen: np.ndarray
    size: float
    model: LogisticRegression

    def predict(self, a_UF: np.ndarray) -> np.ndarray:
        """0 or 1 per unit."""
        return self.model.predict(a_UF[:, self.chosen] / self.size)

    def weights(self, n_features: int) -> np.ndarray:
        """The direction [n_features] along which the probe's score grows, in units of a."""
        weights = np.zeros(n_features)
        weights[self.chosen] = self.model.coef_[0] / self.size
        return weights


def by_mean_difference(a_UF: np.ndarray, y_U: np.ndarray) -> np.ndarray:
    """Features in falling order of \\|mean over y = 1 − mean over y = 0\\|; ties: lowest first."""
    gap = np.abs(a_UF[y_U == 1].mean(0) - a_UF[y_U == 0].mean(0))
    return np.argsort(-gap, kind="stable")


def fit(
    a_UF: np.ndarray, y_U: np.ndarray, chosen: np.ndarray | None = None, rescale: bool = True
) -> Probe:
    """A logistic probe (L2, C = 1) on the features ``chosen`` (None: all of them)."""
    chosen = np.arange(a_UF.shape[1]) if chosen is None else chosen
    a = a_UF[:, chosen]
    size = float(np.sqrt(np.mean(np.square(a, dtype=np.float64)))) if rescale else 1.0
    size = size or 1.0  # latents that never fire
    return Probe(chosen, size, LogisticRegression(max_iter=1000).fit(a / size, y_U))


def balanced(
    class_U: np.ndarray, positive: int, limit: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Units and answers, as many positives (at most ``limit``) as negatives.

    Negatives come in equal numbers from each other class (as far as they have units); units
    without a class (−1) are never drawn.
    """
    positives = generator.permutation(np.flatnonzero(class_U == positive))[:limit]
    others = [c for c in np.unique(class_U[class_U >= 0]) if c != positive]
    share = -(-len(positives) // max(len(others), 1))
    drawn = [generator.permutation(np.flatnonzero(class_U == c))[:share] for c in others]
    negatives = np.concatenate(drawn) if drawn else positives[:0]
    n = min(len(positives), len(negatives))
    chosen = np.concatenate([positives[:n], generator.permutation(negatives)[:n]])
    return chosen, np.repeat([1, 0], n)


def tasks(
    train: Mapping[str, Units],
    test: Mapping[str, Units],
    specs: Mapping[str, LabelSpec],
    *,
    max_classes: int,
    per_class: int,
    min_count: int,
    seed: int,
) -> Iterator[Task]:
    """The classes that both splits have ``min_count`` units of, the most frequent of each label.

    A label of two classes gives one task. What is drawn depends on the labels and the seed alone,
    so it is the same for every SAE.
    """
    for scale in train:
        for name, train_U in train[scale].labels.items():
            classes = specs[name].classes
            test_U = test[scale].labels[name]
            counts = [
                np.bincount(label_U[label_U >= 0], minlength=len(classes))
                for label_U in (train_U, test_U)
            ]
            enough = np.flatnonzero(np.minimum(*counts) >= min_count)
            enough = enough[np.argsort(-counts[0][enough], kind="stable")][:max_classes]
            if len(np.flatnonzero(counts[0])) == 2:
                enough = enough[:1]
            for c in sorted(enough.tolist()):
                generator = np.random.default_rng([seed, *map(ord, name), c])
                drawn = [balanced(u, c, per_class, generator) for u in (train_U, test_U)]
                if min(len(y) for _, y in drawn) >= 2 * min_count:
                    yield Task(scale, f"{name}={classes[c]}", *drawn[0], *drawn[1])


def accuracies(
    task: Task, train_UF: np.ndarray, test_UF: np.ndarray, ks: Sequence[int | None]
) -> dict[int | None, np.ndarray]:
    """Per k (None: all features) whether each test unit is answered right."""
    a, y = train_UF[task.train_U], task.train_y
    order, test = by_mean_difference(a, y), test_UF[task.test_U]
    return {
        k: fit(a, y, order[:k]).predict(test) == task.test_y
        for k in ks
        if k is None or k <= a.shape[1]
    }


@register("probing", nulls=True, needs=("labels",))
def measure(
    saes: Mapping[str, Encoder],
    reading: Reading,
    world: World | None = None,
    *,
    ks: Sequence[int] = KS,
    max_classes: int = 8,
    per_class: int = 150,
    min_count: int = 15,
) -> dict[str, Measured]:
    """Rows ``probe_sparse`` and ``probe_residual``: accuracy on test units, chance ½.

    Groups: ``document|k=5`` (mean over the classes of a time scale, n classes; ``k=all`` too),
    ``document:domain|k=5`` (one label), and ``document|k=5|group=slow`` (latents of one group
    alone). Document rows, k = 5: num = units answered right, den = units, group
    ``document:domain=ships``, metrics ``probe_sparse`` and ``probe_residual``.
    """
    made: dict[str, Measured] = {}
    chosen = {"max_classes": max_classes, "per_class": per_class, "min_count": min_count}
    for name, sae in saes.items():
        train, test = (units.read(sae, reading, split) for split in ("train", "test"))
        groups = {g: i.cpu().numpy() for g, i in latent_groups(sae, sae.cfg.d_sae, "cpu").items()}
        parts = [(g, ids) for g, ids in groups.items() if g != "all" and len(ids) >= PAIRED_K]
        cells: dict[tuple[str, str], list[float]] = {}
        documents = []
        for task in tasks(train, test, reading.store.label_specs, seed=reading.seed, **chosen):
            here = train[task.scale], test[task.scale]
            for metric in ("probe_residual", "probe_sparse"):
                a, b = ((u.x_UD if metric == "probe_residual" else u.z_UF) for u in here)
                answers = accuracies(task, a, b, (*ks, None))
                for k, right in answers.items():
                    for of in (task.scale, f"{task.scale}:{task.name.split('=')[0]}"):
                        cells.setdefault((metric, f"{of}|k={k or 'all'}"), []).append(right.mean())
                if PAIRED_K in answers:
                    doc_U = here[1].doc_U[task.test_U]
                    frame = pd.DataFrame({"doc": doc_U, "num": answers[PAIRED_K] * 1.0, "den": 1.0})
                    names = {"metric": metric, "group": f"{task.scale}:{task.name}"}
                    documents.append(frame.groupby("doc", as_index=False).sum().assign(**names))
            for group, ids in parts:
                right_U = accuracies(task, a[:, ids], b[:, ids], (PAIRED_K,))[PAIRED_K]
                key = "probe_sparse", f"{task.scale}|k={PAIRED_K}|group={group}"
                cells.setdefault(key, []).append(right_U.mean())
        rows = [row(*key, np.mean(values), len(values)) for key, values in cells.items()]
        made[name] = Measured(rows, pd.concat(documents) if documents else None)
    return made

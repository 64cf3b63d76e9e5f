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
from typing import Any, NamedTuple

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
        scored: dict[str, list[tuple]] = {"probe_sparse": [], "probe_residual": []}
        specs = reading.store.label_specs
        for task in tasks(train, test, specs, seed=reading.seed, **chosen):
            here = train[task.scale], test[task.scale]
            x, z = [u.x_UD for u in here], [u.z_UF for u in here]
            for metric, vectors in (("probe_residual", x), ("probe_sparse", z)):
                for k, right in accuracies(task, vectors[0], vectors[1], (*ks, None)).items():
                    scored[metric].append((task, "", k, right))
            for group, ids in groups.items():
                if group != "all" and len(ids) >= PAIRED_K:
                    part = accuracies(task, z[0][:, ids], z[1][:, ids], (PAIRED_K,))
                    scored["probe_sparse"].append((task, group, PAIRED_K, part[PAIRED_K]))
        rows = [r for metric, of_metric in scored.items() for r in _rows(metric, of_metric)]
        documents = [
            frame for metric, part in scored.items() for frame in _documents(metric, part, test)
        ]
        made[name] = Measured(rows, pd.concat(documents) if documents else None)
    return made


def _rows(metric: str, scored: Sequence[tuple]) -> list[dict[str, Any]]:
    cells: dict[str, list[float]] = {}
    for task, group, k, right in scored:
        end = f"|k={k or 'all'}" + (f"|group={group}" if group else "")
        names = [task.scale] if group else [task.scale, f"{task.scale}:{task.name.split('=')[0]}"]
        for name in names:
            cells.setdefault(name + end, []).append(right.mean())
    return [row(metric, group, np.mean(values), len(values)) for group, values in cells.items()]


def _documents(
    metric: str, scored: Sequence[tuple], test: Mapping[str, Units]
) -> Iterator[pd.DataFrame]:
    for task, group, k, right in scored:
        if not group and k == PAIRED_K:
            doc = test[task.scale].doc_U[task.test_U]
            frame = pd.DataFrame({"doc": doc, "num": right.astype(float), "den": 1.0})
            frame = frame.groupby("doc", as_index=False).sum()
            yield frame.assign(metric=metric, group=f"{task.scale}:{task.name}")

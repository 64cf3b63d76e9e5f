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
from tqdm.auto import tqdm

from lab.measures.concepts import units
from lab.measures.concepts.units import Units
from lab.measures.tokens import Measured, latent_groups, row

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
    specs: Mapping[str, Any],
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
    task: Task, train_UF: np.ndarray, test_UF: np.ndarray, ks: Sequence[int | None], rescale: bool
) -> dict[int | None, np.ndarray]:
    """Per k (None: all features) whether each test unit is answered right."""
    a, y = train_UF[task.train_U], task.train_y
    order, test = by_mean_difference(a, y), test_UF[task.test_U]
    return {
        k: fit(a, y, order[:k], rescale).predict(test) == task.test_y
        for k in ks
        if k is None or k <= a.shape[1]
    }


def measure(
    saes: Mapping[str, Any],
    store: Any,
    world: Any = None,
    *,
    limit_tokens: int,
    selection_tokens: int,
    batch_size: int,
    seed: int,
    device: str,
    progress: bool,
    ks: Sequence[int] = KS,
    max_classes: int = 8,
    per_class: int = 150,
    min_count: int = 15,
    token_units: int = 20_000,
    rescale: bool = True,
) -> dict[str, Measured]:
    """Rows ``probe_sparse`` and ``probe_residual``: accuracy on test units, chance ½.

    Groups: ``document|k=5`` (mean over the classes of a time scale, n classes; ``k=all`` too),
    ``document:domain|k=5`` (one label), and ``document|k=5|group=slow`` (latents of one group
    alone). Document rows, k = 5: num = units answered right, den = units, group
    ``document:domain=ships``, metrics ``probe_sparse`` and ``probe_residual``.
    Of the tokens themselves about ``token_units`` are kept. Empty without labels.
    """
    found: dict[str, Measured] = {}
    every = {
        s: max(1, n // token_units)
        for s, n in (("train", selection_tokens), ("test", limit_tokens))
    }
    reading: dict[str, Any] = {"batch_size": batch_size, "device": device}
    chosen = {"max_classes": max_classes, "per_class": per_class, "min_count": min_count}
    all_ks = (*ks, None)
    residual: list[tuple] | None = None
    for name, sae in tqdm(
        saes.items(), desc="probing", disable=not progress or not store.label_specs
    ):
        if not store.label_specs:
            break
        sizes = {"train": selection_tokens, "test": limit_tokens}
        train, test = (
            units.read(sae, store, split, limit_tokens=sizes[split], every=every[split], **reading)
            for split in ("train", "test")
        )
        todo = list(tasks(train, test, store.label_specs, seed=seed, **chosen))
        if residual is None:
            residual = [
                (task, "", k, right)
                for task in todo
                for k, right in accuracies(
                    task, train[task.scale].x_UD, test[task.scale].x_UD, all_ks, rescale
                ).items()
            ]
        groups = {g: i.cpu().numpy() for g, i in latent_groups(sae, sae.cfg.d_sae, "cpu").items()}
        scored = []
        for task in todo:
            z = train[task.scale].z_UF, test[task.scale].z_UF
            for k, right in accuracies(task, *z, all_ks, rescale).items():
                scored.append((task, "", k, right))
            for group, ids in groups.items():
                if group != "all" and len(ids) >= PAIRED_K:
                    part = accuracies(task, z[0][:, ids], z[1][:, ids], (PAIRED_K,), rescale)
                    scored.append((task, group, PAIRED_K, part[PAIRED_K]))
        rows = _rows("probe_sparse", scored) + _rows("probe_residual", residual)
        documents = pd.concat(
            [
                _documents("probe_sparse", scored, test),
                _documents("probe_residual", residual, test),
            ],
            ignore_index=True,
        )
        found[name] = Measured(rows, documents)
    return found


def _rows(metric: str, scored: Sequence[tuple]) -> list[dict[str, Any]]:
    cells: dict[str, list[float]] = {}
    for task, group, k, right in scored:
        end = f"|k={k or 'all'}" + (f"|group={group}" if group else "")
        cells.setdefault(task.scale + end, []).append(right.mean())
        if not group:
            label = task.name.split("=")[0]
            cells.setdefault(f"{task.scale}:{label}{end}", []).append(right.mean())
    return [row(metric, group, np.mean(values), len(values)) for group, values in cells.items()]


def _documents(metric: str, scored: Sequence[tuple], test: Mapping[str, Units]) -> pd.DataFrame:
    frames = []
    for task, group, k, right in scored:
        if group or k != PAIRED_K:
            continue
        frame = pd.DataFrame({"doc": test[task.scale].doc_U[task.test_U], "num": right, "den": 1.0})
        frame = frame.astype({"num": float}).groupby("doc", as_index=False).sum()
        frames.append(frame.assign(metric=metric, group=f"{task.scale}:{task.name}"))
    columns = ["doc", "metric", "group", "num", "den"]
    return pd.concat(frames, ignore_index=True)[columns] if frames else pd.DataFrame()
